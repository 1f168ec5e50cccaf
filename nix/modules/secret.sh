# vmsnix-secret NAME: write standard input to the file NAME in /run/keys, for a service that waits for it.
#
# The file appears with its whole content (it is written under another name and renamed), can be read only by root,
# and is never empty: without input, for example because the program before the pipe failed, nothing is written.
set -eu

folder=${VMSNIX_KEYS:-/run/keys}
if [ $# -ne 1 ] || [ -z "$1" ] || [ "${1#.}" != "$1" ] || [ "${1#*/}" != "$1" ]; then
  echo "Usage: PROGRAM | vmsnix-secret NAME, where NAME is a file name in $folder, such as ecs.config." >&2
  exit 2
fi

umask 077
mkdir -p "$folder"
new=$(mktemp "$folder/.$1.XXXXXX")
trap 'rm -f "$new"' EXIT
cat >"$new"
if [ ! -s "$new" ]; then
  echo "vmsnix-secret: standard input is empty, so $folder/$1 was not written. Check the program before the pipe." >&2
  exit 1
fi
mv --no-target-directory "$new" "$folder/$1"
