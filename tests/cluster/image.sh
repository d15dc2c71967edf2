#!/usr/bin/env bash
# image.sh NAME ARCHIVE ENTRYPOINT FILE=PATH...: an image with those files of this machine at those paths, as `docker save` writes it,
# that starts with those words, and beside it, in ARCHIVE without .tar and with .name, what containerd calls it. The libraries that a program is linked with go
# along. Nobody's number runs it, and PATH and /tmp are there.
set -euo pipefail
name=$1 archive=$2 entrypoint="\"${3// /\", \"}\""
shift 3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# libraries PROGRAM: the paths, the loader's too; none of a static program.
libraries() { ldd "$1" 2>/dev/null | grep -o '/[^ ]*' || true; }

mkdir -p "$work/root/tmp" "$work/root/usr/local/bin"
for file in "$@"; do
    install -D -m 755 "${file%%=*}" "$work/root/${file#*=}"
    for library in $(libraries "${file%%=*}"); do
        install -D -m 755 "$library" "$work/root/$library"
    done
done
chmod 1777 "$work/root/tmp"
tar -C "$work/root" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf "$work/layer.tar" .
layer=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
cat >"$work/config.json" <<J
{"architecture": "amd64", "os": "linux", "created": "1970-01-01T00:00:00Z",
 "config": {"User": "65532:65532", "Entrypoint": [$entrypoint], "Env": ["PATH=/usr/local/bin"]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$layer"]}}
J
echo "[{\"Config\": \"config.json\", \"RepoTags\": [\"$name\"], \"Layers\": [\"layer.tar\"]}]" >"$work/manifest.json"
tar -C "$work" -cf "$archive" manifest.json config.json layer.tar
case $name in
*.*/*) echo "$name" ;;
*) echo "docker.io/$name" ;;
esac >"${archive%.tar}.name"
