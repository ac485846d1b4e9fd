"use strict";
(() => {
  const EVERY = 2000;
  // Milliseconds that the charts show: the least that holds all samples.
  const WINDOWS = [60_000, 120_000, 300_000, 600_000];
  const RESULTS = ["hit", "joined", "shared", "stale", "absent", "fetched", "failed"];
  const BATCHES = ["hit", "partial", "miss", "stale", "bypass", "error"];
  const CALLS = ["ok", "client_error", "server_error", "error_in_200", "unexpected", "no_answer", "deadline", "refused"];
  // The words for values of labels; those of metrics are in docs/METRICS.md.
  const WORDS = {
    ids: { hit: "from memory", joined: "joined a call under way", shared: "from the shared tier", stale: "from memory, past freshness",
      absent: "known to be absent", fetched: "fetched", failed: "failed" },
    batches: { hit: "all from memory", partial: "part from memory", miss: "none from memory", stale: "with stale links",
      bypass: "forwarded untouched", error: "failed, or client left" },
    calls: { ok: "answered", client_error: "refused (4xx)", server_error: "endpoint failed (5xx)", error_in_200: "error in a 200, or no match",
      unexpected: "unexpected status", no_answer: "no usable answer", deadline: "no answer in time", refused: "not sent: breaker or pause" },
    bypass: { "no-credential": "no credential", credentials: "several credentials", algorithm: "unknown Authorization", "unknown-key": "unknown key",
      signature: "signature not verified", "unsigned-payload": "body not signed", cookie: "refused without its cookies", origin: "from a browser (Origin)",
      range: "has a Range", "header-too-long": "header too long", unreadable: "not readable as a batch",
      "no-ids": "no ids", condition: "asks for something else", part: "error for a part of it", "no-list": "answer without a list", unmatched: "answer does not match",
      "not-json": "answer is no JSON" },
    uncacheable: { under_floor: "link expires too soon", no_link: "no link", unreadable_expiry: "expiry not readable", no_store: "endpoint forbids it", vary: "answer varies",
      unmatched: "answer does not match" },
    refetched: { refresh: "refreshed ahead", revalidate: "caller to be accepted again", client: "client asked for it" },
    shed: { in_flight: "ids being fetched", caller_in_flight: "ids being fetched, one caller", waiters: "batches waiting", calls: "calls",
      exchanges: "requests on other routes", batch_bodies: "bytes of batches", signed_bodies: "bytes to be signed" },
    purges: { ids: "ids", group: "a group", all: "everything", delete: "by a DELETE" },
    shared: { breaker: "state", round_trips: "round trips", failures: "failures", ids_found: "ids found", ids_not_found: "ids not found",
      fleet: "this fleet", other_fleets: "other fleets", untold_records: "purges not told yet" },
    states: { closed: "in use", open: "down", half_open: "being tried" },
  };
  const HITS = ["hit", "joined", "shared", "stale"];
  const TOUCH = matchMedia("(hover: none) and (pointer: coarse)");
  const byId = (id) => document.getElementById(id);

  // The samples, oldest first, and the last status.
  let samples = [];
  let last = 0;
  let status = null;
  let config = "";
  let lostAt = null;
  let paused = false;
  let cursor = null; // The time of the sample that is read; null: the latest.
  let timer = null;

  // Numbers
  const count = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
  const rate = (value) => {
    if (value === null) return "–";
    if (value >= 10_000) return `${(value / 1000).toFixed(value >= 100_000 || value % 1000 === 0 ? 0 : 1)} k`;
    return value >= 100 ? count.format(value) : value >= 1 ? value.toFixed(1).replace(".0", "") : value === 0 ? "0" : String(Number(value.toFixed(2)));
  };
  const time = (seconds) => {
    if (seconds === null || seconds === undefined) return "–";
    if (seconds === 0) return "0";
    if (seconds < 0.001) return `${(seconds * 1e6).toFixed(0)} µs`;
    if (seconds < 1) return `${Number((seconds * 1e3).toFixed(seconds < 0.01 ? 2 : seconds < 0.1 ? 1 : 0))} ms`;
    return `${Number(seconds.toFixed(seconds < 10 ? 2 : 1))} s`;
  };
  const bytes = (value) => {
    if (value === null || value === undefined) return "–";
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = 0;
    while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
    return `${value >= 100 || unit === 0 ? value.toFixed(0) : Number(value.toFixed(1))} ${units[unit]}`;
  };
  const share = (value) => {
    if (value === null) return "–";
    const text = (value * 100).toFixed(1);
    // Never all where something lacks.
    return `${text === "100.0" && value < 1 ? "99.9" : text.replace(".0", "")} %`;
  };
  const span = (seconds) => {
    const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]].map(([size, name]) => {
      const whole = Math.floor(seconds / size);
      seconds -= whole * size;
      return [whole, name];
    });
    const from = parts.findIndex(([whole]) => whole > 0);
    return from < 0 ? "0 s" : parts.slice(from, from + 2).filter(([whole]) => whole > 0).map(([whole, name]) => `${whole} ${name}`).join(" ");
  };
  const clock = (millis) => new Date(millis).toLocaleTimeString([], { hour12: false });
  const sum = (list) => list.reduce((total, value) => total + value, 0);
  const perSecond = (of) => (sample) => (sample.span > 0 ? (of(sample) * 1000) / sample.span : 0);
  const hitRate = (sample) => {
    const all = sum(RESULTS.map((name) => sample.ids[name]));
    return all > 0 ? sum(HITS.map((name) => sample.ids[name])) / all : null;
  };

  // Elements
  const make = (name, attributes = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children.filter((child) => child !== null));
    return element;
  };
  const draw = (name, attributes = {}, text = null) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== null) element.textContent = text;
    return element;
  };

  // Charts: each has series, of which some are stacked, and says how its values are written.
  const series = (name, label, of, extra = {}) => ({ name, label, of, ...extra });
  const quantiles = (of) => [series("hit", "half are faster than", (sample) => of(sample).p50),
    series("fetched", "99 % are faster than", (sample) => of(sample).p99, { dashed: true })];
  const CHARTS = [
    { id: "failures", title: "Failures", unit: "a second", write: rate,
      series: [series("failed", "batches failed (5xx)", perSecond((sample) => sample.responses.batch["5xx"]), { wash: true }),
        series("fetched", "batches refused (4xx)", perSecond((sample) => sample.responses.batch["4xx"])),
        series("absent", "clients left before the answer", perSecond((sample) => sample.responses.batch.client_left)),
        series("stale", "ids failed", perSecond((sample) => sample.ids.failed), { dashed: true })] },
    { id: "hit-rate", title: "Hit rate", unit: "ids answered without a call of their own", write: share, top: 1,
      series: [series("hit", "hit rate", hitRate, { wash: true })] },
    { id: "ids", title: "Ids, by where they came from", unit: "ids a second", write: rate, stacked: true,
      series: RESULTS.map((name) => series(name, WORDS.ids[name], perSecond((sample) => sample.ids[name]))) },
    { id: "load", title: "Calls to the endpoint", unit: "calls a second", write: rate,
      series: [series("hit", "all", perSecond((sample) => sample.calls), { wash: true }),
        series("failed", "failed or not sent", perSecond((sample) => sample.calls_failed), { dashed: true })] },
    { id: "answers", title: "Time to answer a batch", unit: "logarithmic", write: time, logarithmic: true,
      series: quantiles((sample) => sample.answer_seconds) },
    { id: "endpoint", title: "Time of a call to the endpoint", unit: "logarithmic", write: time, logarithmic: true,
      series: quantiles((sample) => sample.call_seconds) },
    { id: "others", title: "Other routes", unit: "requests a second", write: rate,
      series: [series("hit", "answered", perSecond((sample) => sample.responses.passthrough.answered), { wash: true }),
        series("fetched", "refused (4xx)", perSecond((sample) => sample.responses.passthrough["4xx"])),
        series("failed", "failed (5xx)", perSecond((sample) => sample.responses.passthrough["5xx"])),
        series("absent", "client left", perSecond((sample) => sample.responses.passthrough.client_left))] },
    { id: "memory", title: "Links in memory", unit: "bytes, bookkeeping included", write: bytes, binary: true,
      series: [series("hit", "in use", (sample) => sample.bytes, { wash: true })] },
  ];

  const key = (chart, one) => {
    const svg = draw("svg", { viewBox: "0 0 12 10", "aria-hidden": "true" });
    if (chart.stacked) svg.append(draw("rect", { x: 1, y: 0, width: 10, height: 10, rx: 2, class: `f-${one.name}` }));
    else svg.append(draw("line", { x1: 0, x2: 12, y1: 5, y2: 5, class: `line l-${one.name}${one.dashed ? " dashed" : ""}` }));
    return svg;
  };

  for (const chart of CHARTS) {
    chart.when = make("span", { class: "quiet" });
    chart.svg = draw("svg", { class: "plot", role: "img", tabindex: "0", id: `plot-${chart.id}`, "aria-label": chart.title });
    chart.values = chart.series.map(() => make("b", {}, "–"));
    const legend = make("ul", { class: "legend" },
      ...chart.series.map((one, at) => make("li", {}, key(chart, one), `${one.label} `, chart.values[at])));
    chart.table = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${chart.title}, as a table` });
    chart.details = make("details", { class: "figure-table" }, make("summary", {}, "As a table"), chart.table);
    chart.details.addEventListener("toggle", () => tabulate(chart));
    const title = make("h3", {}, chart.title, " ", make("span", { class: "quiet" }, `· ${chart.unit}`));
    byId("figures").append(make("figure", { class: "card", id: `chart-${chart.id}` },
      make("figcaption", {}, title, chart.when), chart.svg, legend, chart.details));
    chart.svg.addEventListener("pointermove", (event) => point(chart, event.clientX));
    chart.svg.addEventListener("pointerdown", (event) => point(chart, event.clientX));
    // A finger that is lifted leaves too, and what it has read stays.
    chart.svg.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") read(null); });
    chart.svg.addEventListener("blur", () => read(null));
    chart.svg.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -15, PageDown: 15, Home: -Infinity, End: Infinity };
      if (event.key === "Escape") read(null);
      else if (event.key in steps && samples.length > 0) {
        event.preventDefault();
        const at = cursor === null ? samples.length - 1 : samples.findIndex((sample) => sample.at === cursor);
        const next = Math.min(samples.length - 1, Math.max(0, at + steps[event.key]));
        read(samples[next].at);
        byId("said-moment").textContent = describe(chart, samples[next]);
      }
    });
  }
  // Tells a screen reader the values at the position that the arrow keys select.
  document.body.append(make("p", { id: "said-moment", class: "unseen", "aria-live": "polite" }));

  const describe = (chart, sample) =>
    `${clock(sample.at)}: ${chart.series.map((one) => `${one.label} ${chart.write(one.of(sample))}`).join(", ")}`;
  const read = (at) => { cursor = at; drawAll(); };
  const newest = () => (samples.length > 0 ? samples[samples.length - 1].at : Date.now());
  const shown = () => {
    const past = samples.length > 0 ? newest() - samples[0].at : 0;
    return WINDOWS.find((window) => window >= past) ?? WINDOWS[WINDOWS.length - 1];
  };
  const LEFT = 52;
  const point = (chart, x) => {
    if (samples.length === 0) return;
    const box = chart.svg.getBoundingClientRect();
    const at = newest() - shown() * (1 - (x - box.left - LEFT) / Math.max(1, box.width - LEFT - 8));
    read(samples.reduce((best, sample) => (Math.abs(sample.at - at) < Math.abs(best.at - at) ? sample : best)).at);
  };

  // The least of 1, 2, 2.5, 5 times a power that is no less.
  const ceiling = (value, base) => {
    if (!(value > 0)) return 1;
    const power = base ** Math.floor(Math.log(value) / Math.log(base));
    const steps = base === 2 ? [1, 2] : [1, 2, 2.5, 5, 10];
    return power * steps.find((step) => step * power >= value * 0.999);
  };

  const plot = (chart) => {
    const svg = chart.svg;
    const window = shown();
    const width = Math.max(120, svg.clientWidth);
    const height = svg.clientHeight || 150;
    const [top, bottom, right] = [8, 20, 8];
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren();
    const values = samples.map((sample) => chart.series.map((one) => one.of(sample)));
    const heights = values.map((row) => (chart.stacked ? [sum(row)] : row)).flat().filter((value) => value !== null);
    const highest = Math.max(0, ...heights);
    // Whole decades, two at least.
    const lowest = Math.min(...heights.filter((value) => value > 0));
    const decades = chart.logarithmic && highest > 0 ? [Math.floor(Math.log10(lowest)), Math.ceil(Math.log10(highest))] : null;
    if (decades && decades[1] - decades[0] < 2) decades[1] = decades[0] + 2;
    const most = chart.top ?? ceiling(highest, chart.binary ? 2 : 10);
    const x = (at) => LEFT + (width - LEFT - right) * (1 - (newest() - at) / window);
    const part = (value) => {
      if (!decades) return value / most;
      return Math.max(0, (Math.log10(Math.max(value, 1e-9)) - decades[0]) / (decades[1] - decades[0]));
    };
    const y = (value) => top + (height - top - bottom) * (1 - part(value));
    const rule = (value, name) => svg.append(draw("line", { x1: LEFT, x2: width - right, y1: y(value), y2: y(value), class: name }));
    // Where all is zero, an axis would show a scale that nothing has.
    const ticks = decades ? Array.from({ length: decades[1] - decades[0] + 1 }, (_, at) => 10 ** (decades[0] + at))
      : chart.top || highest > 0 ? [0, most / 2, most] : heights.length > 0 ? [0] : [];
    for (const tick of ticks) {
      if (part(tick) > 0) rule(tick, "rule");
      svg.append(draw("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, chart.write(tick)));
    }
    const parts = width < 420 ? 2 : window === 120_000 ? 4 : window === 60_000 ? 6 : 5;
    for (let at = 0; at <= parts; at += 1) {
      const ago = (window * at) / parts / 1000;
      const label = at === 0 ? "now" : window > 120_000 ? `−${ago / 60} min` : `−${ago} s`;
      svg.append(draw("text", { x: x(newest() - ago * 1000), y: height - 5, "text-anchor": at === 0 ? "end" : "middle" }, label));
    }
    if (heights.length === 0 || (highest === 0 && !chart.top)) {
      svg.append(draw("text", { x: (LEFT + width - right) / 2, y: top + (height - top - bottom) * 0.3, "text-anchor": "middle", class: "none" }, heights.length === 0 ? "nothing yet" : "none"));
    }
    const place = (value, at) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`;
    if (chart.stacked) {
      let floor = values.map(() => 0);
      chart.series.forEach((one, at) => {
        const roof = values.map((row, index) => floor[index] + row[at]);
        if (values.some((row) => row[at] > 0)) {
          const up = roof.map((value, index) => place(value, samples[index].at));
          const down = floor.map((value, index) => place(value, samples[index].at)).reverse();
          svg.append(draw("path", { d: `M${[...up, ...down].join("L")}Z`, class: `area f-${one.name}` }));
        }
        floor = roof;
      });
    } else {
      chart.series.forEach((one, at) => {
        // A line for each stretch of samples that have a value.
        const stretches = [[]];
        values.forEach((row, index) => {
          if (row[at] === null) stretches.push([]);
          else stretches[stretches.length - 1].push([row[at], samples[index].at]);
        });
        for (const stretch of stretches.filter((stretch) => stretch.length > 0)) {
          const [first, final] = [stretch[0], stretch[stretch.length - 1]];
          const line = stretch.map(([value, when]) => place(value, when)).join("L");
          if (one.wash) svg.append(draw("path", { d: `M${place(0, first[1])}L${line}L${place(0, final[1])}Z`, class: `wash f-${one.name}` }));
          // A lone sample is a dot, as wide as the line.
          const dot = stretch.length === 1 ? "h0.01" : "";
          svg.append(draw("path", { d: `M${line}${dot}`, class: `line l-${one.name}${one.dashed ? " dashed" : ""}` }));
        }
      });
    }
    svg.append(draw("line", { x1: LEFT, x2: width - right, y1: height - bottom, y2: height - bottom, class: "base" }));
    const at = cursor === null ? samples[samples.length - 1] : samples.find((sample) => sample.at === cursor);
    if (cursor !== null && at) svg.append(draw("line", { x1: x(cursor), x2: x(cursor), y1: top, y2: height - bottom, class: "cursor" }));
    chart.when.textContent = cursor !== null && at ? clock(cursor) : "";
    chart.series.forEach((one, index) => { chart.values[index].textContent = at ? chart.write(one.of(at)) : "–"; });
    svg.setAttribute("aria-label", `${chart.title}: ${chart.unit}. ${at ? describe(chart, at) : "Nothing yet."}${TOUCH.matches ? "" : " Arrow keys read other moments."}`);
    if (chart.details.open) tabulate(chart);
  };
  const drawAll = () => CHARTS.forEach(plot);

  // Twenty rows, newest first: enough to follow a curve.
  const tabulate = (chart) => {
    if (!chart.details.open) return;
    const step = Math.max(1, Math.ceil(samples.length / 20));
    const rows = samples.filter((_, index) => (samples.length - 1 - index) % step === 0).reverse();
    const head = make("tr", {}, make("th", { scope: "col" }, "time"), ...chart.series.map((one) => make("th", { scope: "col" }, one.label)));
    const cells = rows.map((sample) => make("tr", {}, make("th", { scope: "row" }, clock(sample.at)),
      ...chart.series.map((one) => make("td", {}, chart.write(one.of(sample))))));
    const caption = make("caption", { class: "unseen" }, `${chart.title}: ${chart.unit}`);
    chart.table.replaceChildren(make("table", {}, caption, make("thead", {}, head), make("tbody", {}, ...cells)));
  };

  // The rest of the page
  const lastMinute = (of) => sum(samples.slice(-30).map(of));
  const tiles = () => {
    const seconds = lastMinute((sample) => sample.span) / 1000;
    const per = (of) => (seconds > 0 ? lastMinute(of) / seconds : null);
    const ids = (names) => lastMinute((sample) => sum(names.map((name) => sample.ids[name])));
    const all = ids(RESULTS);
    const latest = [...samples].reverse().find((sample) => sample.answer_seconds.p99 !== null);
    const called = [...samples].reverse().find((sample) => sample.call_seconds.p99 !== null);
    const fill = status.cache.capacity > 0 ? status.cache.bytes / status.cache.capacity : 0;
    const batches = lastMinute((sample) => sample.batches);
    const failed = lastMinute((sample) => sample.batches_failed);
    const errors = batches > 0 ? `${failed === 0 ? "no batch" : `${count.format(failed)} of ${count.format(batches)} batches`} failed, last minute` : "no batch in the last minute";
    const list = [
      ["Errors", share(batches > 0 ? failed / batches : null), errors, status.alerts.find((alert) => failed > 0 && ["errors", "breaker"].includes(alert.kind))?.severity],
      ["Hit rate", share(all > 0 ? ids(HITS) / all : null), "ids, last minute"],
      ["Batches", rate(per((sample) => sample.batches)), all > 0 ? `a second; ${rate(all / seconds)} ids` : "a second"],
      ["Calls to the endpoint", rate(per((sample) => sample.calls)), seconds > 0 ? `a second; ${rate(per((sample) => sample.call_ids))} ids` : "a second"],
      ["Slow batches", time(latest?.answer_seconds.p99), latest ? `1 % take longer; half ${time(latest.answer_seconds.p50)}` : "no batch lately"],
      ["Slow calls", time(called?.call_seconds.p99), called ? `1 % take longer; half ${time(called.call_seconds.p50)}` : "no call lately"],
      ["Memory", share(fill), `${bytes(status.cache.bytes)} of ${bytes(status.cache.capacity)}`],
    ];
    byId("tiles").replaceChildren(...list.map(([name, value, hint, state]) =>
      make("div", { id: `tile-${name.toLowerCase().replaceAll(/[^a-z]+/g, "-")}`, class: state ?? "" }, make("dt", {}, name), make("dd", {}, value), make("dd", { class: "hint" }, hint))));
  };

  const pairs = (id, list) => byId(id).replaceChildren(...list.flatMap(([name, value, extra]) => {
    if (name === null) return [make("dd", { class: `wide ${extra ?? ""}` }, value)];
    return [make("dt", {}, name), make("dd", extra ? { class: extra } : {}, value)];
  }));
  const spoken = (name) => name.replaceAll("_", " ").replaceAll("-", " ");
  const said = (kind, name) => WORDS[kind]?.[name] ?? spoken(name);
  const counted = (kind, counts, names) => names.map((name) => [said(kind, name), count.format(counts[name])]);

  // A banner for each alert, worst first. One that stays keeps its element, so that it is read out once; numbers that change in its
  // text are not.
  const banners = (alerts) => {
    const box = byId("alerts");
    const before = new Map([...box.children].map((banner) => [banner.dataset.kind, banner]));
    const now = alerts.map((alert) => {
      const banner = before.get(alert.kind) ?? make("div", { role: "alert", "data-kind": alert.kind },
        make("h2", {}), make("p", { "aria-live": "off" }));
      banner.className = `alert ${alert.severity}`;
      const [title, text] = banner.children;
      if (title.textContent !== alert.title) title.textContent = alert.title;
      if (text.textContent !== alert.text) text.textContent = alert.text;
      return banner;
    });
    before.forEach((banner) => { if (!now.includes(banner)) banner.remove(); });
    now.forEach((banner, at) => { if (box.children[at] !== banner) box.insertBefore(banner, box.children[at] ?? null); });
  };

  const state = () => {
    const reload = status.reload;
    // Only what is amiss is colored: green would say that all is well, which the banners say.
    const breaker = { closed: ["closed"], half_open: ["half-open", "warn"], open: ["open", "bad"] }[status.breaker];
    const failure = status.last_error;
    pairs("health", [
      ["new connections", status.ready ? "accepted" : "refused", status.ready ? "" : "bad"],
      ["breaker", ...breaker],
      ["last failure", status.last_failure ? clock(status.last_failure.at) : "none"],
      ...(status.last_failure ? [[null, status.last_failure.reason]] : []),
      ["last error answered", failure ? clock(failure.at) : "none"],
      ...(failure ? [[null, [status.apis ? failure.api : null, failure.status, failure.code].filter((part) => part !== null).join(" · ")]] : []),
      ["configuration file", reload.succeeded ? "in force" : "refused", reload.succeeded ? "" : "bad"],
      ["last read", reload.at ? clock(Date.parse(reload.at)) : "–"],
      ...reload.errors.map((error) => [null, error, "bad"]),
      ...(status.shared ? Object.entries(status.shared).map(([name, value]) => [`shared tier: ${said("shared", name)}`, typeof value === "number" ? count.format(value) : Array.isArray(value) ? value.join(", ") || "none" : said("states", value ?? "–")]) : [["shared tier", "none"]]),
      ...(status.identity ? [
        ["identity provider", said("states", status.identity.breaker), status.identity.breaker === "closed" ? "" : "bad"],
        ["users that are known", count.format(status.identity.users)],
        ["callers that are one of them", count.format(status.identity.callers)],
        ...status.identity.most_callers.filter((user) => user.callers > 1).slice(0, 3).map((user) => [null, `user ${user.hash}: ${count.format(user.callers)} callers`]),
      ] : []),
      ["callers, accepted by the endpoint", count.format(status.callers_accepted)],
      ["connections of clients", count.format(status.connections)],
      ["calls under way", count.format(status.calls_in_flight)],
      ["links in memory", count.format(status.cache.links)],
      ["dropped to make room", count.format(status.cache.evicted)],
      ["purges remembered", count.format(status.cache.purge_marks)],
      ["process memory", bytes(status.memory_bytes)],
      ["clock, to the endpoint's", status.totals.calls.ok > 0 ? `${status.clock_skew_seconds < 0 ? "−" : "+"}${time(Math.abs(status.clock_skew_seconds))}` : "–"],
    ]);
    const totals = status.totals;
    const total = sum(Object.values(totals.ids));
    pairs("ids", [...counted("ids", totals.ids, RESULTS), ["all", count.format(total)], ["sent to the endpoint", count.format(totals.call_ids)]]);
    pairs("batches", counted("batches", totals.batches, BATCHES));
    pairs("calls", counted("calls", totals.calls, CALLS));
    // There only where there are several.
    byId("of-apis").hidden = !status.apis;
    pairs("apis", (status.apis ?? []).map(({ api, batches, failed, ids, hits }) => [api,
      `${share(ids > 0 ? hits / ids : null)} of ${count.format(ids)} ids without a call; ${count.format(batches)} batches, ${count.format(failed)} failed`]));
    const others = [["forwarded", "bypass"], ["not kept", "uncacheable"], ["fetched again", "refetched"], ["refused at a limit", "shed"], ["purged", "purges"]]
      .flatMap(([words, kind]) => Object.entries(totals[kind]).filter(([, value]) => value > 0).map(([name, value]) => [`${words}: ${said(kind, name)}`, count.format(value)]));
    pairs("others", others.length > 0 ? others : [[null, "Nothing was forwarded untouched, refused at a limit, purged or not kept.", "quiet"]]);
    byId("about").textContent = `${status.host} · ${status.version} · up ${span(status.uptime_seconds)} · in front of ${status.endpoint}`;
    if (byId("config").textContent !== config) byId("config").textContent = config;
    const [worst] = status.alerts;
    document.title = worst ? `⚠ ${worst.title} · sidelink at ${status.host}` : `sidelink at ${status.host} · hit rate ${byId("tiles").querySelector("#tile-hit-rate dd").textContent}`;
  };

  // Announced once each time that it changes, not each time that it is so.
  const say = (text) => {
    const said = byId("said");
    if ((text ?? "") === said.textContent) return;
    said.textContent = text ?? "";
  };
  const badge = (name, text) => {
    const link = byId("link");
    link.dataset.state = name;
    if (link.textContent !== text) link.textContent = text;
  };

  const take = (next) => {
    status = next;
    if (next.config !== undefined) config = next.config;
    const history = next.history;
    history.at.forEach((at, index) => {
      const pick = (column) => Array.isArray(column) ? column[index]
        : Object.fromEntries(Object.entries(column).map(([name, inner]) => [name, pick(inner)]));
      const { last: _, most: __, ...columns } = history;
      samples.push(pick(columns));
    });
    samples = samples.slice(-history.most);
    last = history.last;
    if (cursor !== null && !samples.some((sample) => sample.at === cursor)) cursor = null;
  };

  const poll = async () => {
    clearTimeout(timer);
    if (paused || document.hidden) return;
    try {
      // Not a relative URL: that of a page that was opened as http://user:password@host/ has the password in it, and fetch refuses it.
      const response = await fetch(location.origin + location.pathname.replace(/[^/]*$/, "") + (last > 0 ? `status.json?since=${last}` : "status.json"), { cache: "no-store", signal: AbortSignal.timeout(8000) });
      if (!response.ok) throw new Error(response.status === 401 || response.status === 403 ? "sidelink does not let this page in" : `sidelink answers with ${response.status}`);
      const next = await response.json();
      // The process or its configuration is another one: start again.
      if (last > 0 && (next.started !== status.started || (next.reload.succeeded && next.reload.at !== status.reload.at))) {
        samples = [];
        last = 0;
        timer = setTimeout(poll, 0);
        return;
      }
      take(next);
      lostAt = null;
      document.body.classList.remove("lost");
      badge("live", "live");
      say(null);
      banners(next.alerts);
      tiles();
      state();
      drawAll();
    } catch (error) {
      lostAt ??= Date.now();
      document.body.classList.add("lost");
      badge("lost", "connection lost");
      const why = error instanceof TypeError || error.name === "TimeoutError" ? "there is no answer" : error.message;
      say(`Connection lost at ${clock(lostAt)}: ${why}. What is shown is from before; trying again.`);
    }
    timer = setTimeout(poll, EVERY);
  };

  byId("pause").addEventListener("click", () => {
    paused = !paused;
    byId("pause").setAttribute("aria-pressed", String(paused));
    byId("pause").textContent = paused ? "Resume this page" : "Pause this page";
    if (paused) badge("paused", "paused");
    poll();
  });
  document.addEventListener("visibilitychange", poll);
  new ResizeObserver(() => drawAll()).observe(byId("figures"));
  poll();
})();
