"""The results of benches/peers/run.py as Markdown and as a picture."""

import dataclasses
import os
import re
import statistics
import subprocess
import textwrap
from pathlib import Path
from xml.sax.saxutils import escape

from peers import CEILING, PROXY_CACHE, ROOT, SIDELINK, WHOLE_ANSWERS, packages

REPEATED, OVERLAPPING = "repeated", "overlapping"


def versions(programs, names):
    def first_line(*command):
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return ran.stdout.strip().splitlines()[0] if ran.stdout.strip() else "?"

    lock = (ROOT / "Cargo.lock").read_text()
    crate = lambda name: re.search(rf'name = "{name}"\nversion = "([^"]+)"', lock)[1]
    package = lambda name: f"{name} " + first_line("dpkg-query", "-W", "-f", "${Version}", name)
    toolchain = first_line("rustc", "--version")
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    return [
        first_line(programs["sidelink"], "--version") + f" (hyper {crate('hyper')}, tokio {crate('tokio')}, {toolchain})",
        ", ".join(map(package, packages(names))),
        f"Linux {os.uname().release}, {cpu[1] if cpu else os.uname().machine}",
    ]


def disturbed(results, disturbance):
    turns = [turn for samples in results.values() for each in samples.values() for turn in each]
    return f"{sum(turn.others > disturbance for turn in turns)} of {len(turns)} turns shared their cores with other processes"


def median_of(samples):
    first, *_ = samples
    return type(first)(*(statistics.median(values) for values in zip(*map(dataclasses.astuple, samples))))


def grouped(number):
    return f"{number:,.0f}".replace(",", " ")


def ids(size):
    return f"{size} id" if size == 1 else f"{size} ids"


def mib(sample):
    memory = f"{sample.memory / 2**20:.0f} MiB"
    return memory + (f" + {sample.files / 2**20:.0f} MiB of files" if sample.files else "")


def table(header, rows):
    align = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, align, *rows]) + "\n"


def label(name, workload):
    return f"{name} (empty at first)" if workload == OVERLAPPING and name in WHOLE_ANSWERS else name


def overview(workload, results, asked):
    """A row for each contender in one workload."""
    sizes = [size for of, size in results if of == workload]
    rows = []
    for name in results[workload, sizes[0]]:
        medians = [median_of(results[workload, size][name]) for size in sizes]
        amplification = [asked.get((workload, size), {}).get(name) for size in sizes]
        row = [label(name, workload), *(grouped(median.rate) for median in medians), mib(max(medians, key=lambda m: m.memory))]
        rows.append([*row, " / ".join("-" if value is None else f"{value:.2f}" for value in amplification)])
    header = [f"{workload}, requests/s", *(f"{ids(size)} a batch" for size in sizes), "memory, at most"]
    return table([*header, "ids asked of the endpoint ÷ distinct ids"], rows)


def ratios(runs):
    """sidelink's ratios to the ceiling and to proxy_cache: the median of several runs, and each of them."""
    rows = []
    for workload, size in runs[0]:
        medians = [{name: median_of(turns) for name, turns in run[workload, size].items()} for run in runs]
        cells = []
        for name in (CEILING, PROXY_CACHE):
            cells.append([each[SIDELINK].rate / each[name].rate if name in each else float("nan") for each in medians])
        for name in (SIDELINK, PROXY_CACHE):
            cells.append([each[name].p99 if name in each else float("nan") for each in medians])
        of_each = lambda values: f" ({', '.join(f'{value:.2f}' for value in values)})" if len(values) > 1 else ""
        rows.append([f"{workload}, {ids(size)}", *(f"{statistics.median(values):.2f}{of_each(values)}" for values in cells)])
    return table([SIDELINK, f"÷ {CEILING}", f"÷ {PROXY_CACHE}", "p99, ms", f"{PROXY_CACHE}'s p99, ms"], rows)


def details(workload, size, samples, asked):
    """All that was measured of one workload at one size."""
    medians = {name: median_of(turns) for name, turns in samples.items()}
    rows = []
    for name, m in medians.items():
        rates = [turn.rate for turn in samples[name]]
        times = lambda peer: f"{m.rate / medians[peer].rate:.2f}" if peer in medians else "-"
        rows.append(
            [
                label(name, workload),
                # The load never sleeps, so a full core is the server's limit.
                f"{grouped(m.rate)}{' †' if m.server < 0.95 else ''}",
                f"{grouped(min(rates))} to {grouped(max(rates))}",
                times(CEILING),
                times(PROXY_CACHE),
                f"{m.p50:.2f} ms",
                f"{m.p99:.2f} ms",
                mib(m),
                f"{asked[name]:.2f}" if name in asked else "-",
                f"{m.server:.0%}",
                f"{m.server / m.rate * 1e6:.1f} µs",
            ]
        )
    header = [f"{workload}, {ids(size)} a batch", "requests/s", "least to most", f"÷ {CEILING}", f"÷ {PROXY_CACHE}", "p50", "p99"]
    header += ["memory", "ids asked ÷ distinct", "server's core", "server's CPU for a request"]
    note = "\n† Its core was not full: the load or the endpoint was too slow.\n" if any("†" in row[1] for row in rows) else ""
    return table(header, rows) + note


def markdown(runs, asked, workloads, facts):
    results = runs[-1]
    parts = [overview(workload, results, asked) for workload in workloads]
    parts.append(ratios(runs))
    parts.append(
        f"Repeated: {workloads[REPEATED]} different batches, each of which comes again and again; all answers are hits.\n\n"
        f"Overlapping: {grouped(workloads[OVERLAPPING])} different batches over the same ids. Servers that cache links have all of them in "
        "memory. Caches of whole answers start empty, and their turn ends after one pass: they have hits only by chance, and the "
        "endpoint shares the core of the load.\n\n"
        f"“{CEILING}” answers with a constant of the same size: the ceiling of this stack. Ids asked of the endpoint are counted while "
        "every batch comes once, with nothing in memory at first.\n"
    )
    parts.append("".join(f"- {fact}\n" for fact in facts))
    parts += [details(*cell, samples, asked.get(cell, {})) for cell, samples in results.items()]
    return "\n".join(parts)


STYLE = """
    .page { fill: #ffffff }
    .peer { fill: #afb8c1 }
    .own { fill: #1a7f37 }
    .top { fill: none; stroke: #8c959f; stroke-width: 1.25; stroke-dasharray: 4 3 }
    text { fill: #1f2328; font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif }
    .name { font-size: 16px; font-weight: 600 }
    .of { text-anchor: end }
    .note { fill: #57606a; font-size: 12px }
    @media (prefers-color-scheme: dark) {
      .page { fill: #0d1117 }
      .peer { fill: #484f58 }
      .own { fill: #3fb950 }
      .top { stroke: #6e7681 }
      text { fill: #e6edf3 }
      .note { fill: #9198a1 }
    }
  """


def picture(results, facts):
    """Bars: a panel for each workload and size, with its own scale, and a bar for each contender."""
    width, left, right, bar, gap = 860, 256, 90, 20, 7
    shapes, y = [], 34
    shapes.append(f'<text class="name" x="20" y="{y}">Requests a second on one core</text>')
    for (workload, size), samples in results.items():
        y += 34
        most = max(median_of(turns).rate for turns in samples.values())
        shapes.append(f'<text class="name" x="20" y="{y}">{workload} batches of {ids(size)}</text>')
        y += 12
        for name, turns in samples.items():
            rate = median_of(turns).rate
            length = (width - left - right) * rate / most
            kind = {SIDELINK: "own", CEILING: "top"}.get(name, "peer")
            middle = y + bar * 0.7
            shapes.append(f'<text class="of" x="{left - 8}" y="{middle:.1f}">{escape(label(name, workload))}</text>')
            shapes.append(f'<rect class="{kind}" x="{left}" y="{y}" width="{length:.1f}" height="{bar}" rx="3"/>')
            shapes.append(f'<text x="{left + length + 8:.1f}" y="{middle:.1f}">{grouped(rate)}</text>')
            y += bar + gap
    y += 14
    ceiling = f"{CEILING}: a server that answers with a constant of the same size, the ceiling of this stack."
    notes = [ceiling, "; ".join(facts) + "."]
    for note in (line for note in notes for line in textwrap.wrap(note, 135)):
        shapes.append(f'<text class="note" x="20" y="{y}">{escape(note)}</text>')
        y += 17
    height = y + 6
    shape_lines = "\n  ".join(shapes)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-labelledby="t">
  <title id="t">Requests a second on one core: sidelink, nginx, Varnish and a bare hyper server</title>
  <style>{STYLE}</style>
  <rect class="page" width="{width}" height="{height}" rx="10"/>
  {shape_lines}
</svg>
"""
