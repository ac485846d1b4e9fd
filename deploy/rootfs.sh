#!/bin/sh
# rootfs.sh BINARY DIRECTORY: lays out all that a container of sidelink holds: the binary, the libraries that it is linked
# with, the certificate authorities, and a configuration. No shell, no package manager, nothing to write to.
set -eu
binary=$1
root=$2
here=$(dirname "$0")

install -D -m 0755 "$binary" "$root/usr/local/bin/sidelink"
ldd "$binary" | grep -o '/[^ )]*' | sort -u | while read -r library; do
    install -D -m 0755 "$library" "$root$library"
done
install -D -m 0644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
# It listens at all addresses, so that ports can be published. Mount a folder of your own over it.
install -D -m 0644 "$here/image.toml" "$root/etc/sidelink/sidelink.toml"
printf 'sidelink:x:65532:65532::/:/nonexistent\n' >"$root/etc/passwd"
printf 'sidelink:x:65532:\n' >"$root/etc/group"
