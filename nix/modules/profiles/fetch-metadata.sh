# Fetch host name, SSH key and user data from EC2's instance metadata service into a folder, one file each.
#
# The network and the service may appear long after this script starts. It tries again until everything is fetched,
# with growing pauses, for at most VMSNIX_METADATA_SECONDS (300). Then it writes one line to standard output (the
# console) and exits with status 1, and the boot continues without the data. If the service is off (status 403),
# there is nothing to fetch, which is success. Other messages are on standard error (the journal).
#
# A file is written under another name and renamed, so that a reader never sees a part of it.
set -u

folder=${VMSNIX_METADATA_FOLDER:-/etc/ec2-metadata}
limit=${VMSNIX_METADATA_SECONDS:-300}
endpoints=${VMSNIX_METADATA_ENDPOINTS:-http://169.254.169.254 http://[fd00:ec2::254]}
# The names of nixpkgs' own services for the files.
items="hostname=meta-data/hostname
public-keys-0-openssh-key=meta-data/public-keys/0/openssh-key
ami-manifest-path=meta-data/ami-manifest-path
user-data=user-data"

why=
disabled=
mkdir -p "$folder"
work=$(mktemp -d "$folder/.fetch.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT

# request FILE OPTION...: write the body to FILE and print the HTTP status, 000 without an answer.
request() {
  local file=$1
  shift
  curl --silent --connect-timeout 2 --max-time 10 --noproxy '*' --output "$file" --write-out '%{http_code}' "$@" || true
}

# Find an endpoint that issues a session token. Set `endpoint` and the file `header`.
open_session() {
  local status
  disabled=
  why=
  for endpoint in $endpoints; do
    status=$(request "$work/token" --request PUT --header 'X-aws-ec2-metadata-token-ttl-seconds: 600' \
      "$endpoint/latest/api/token")
    case $status in
      200)
        (umask 077 && echo "X-aws-ec2-metadata-token: $(cat "$work/token")" >"$work/header")
        disabled=
        return
        ;;
      403) disabled=$endpoint ;;
      000) why=${why:-no answer from $endpoint} ;;
      *) why="$endpoint answered a request for a token with status $status" ;;
    esac
  done
  return 1
}

# Replace a compressed file by its content.
decompress() {
  local program
  case $(file --brief --mime-type "$1") in
    application/gzip | application/x-gzip) program=gzip ;;
    application/x-bzip2) program=bzip2 ;;
    application/x-xz) program=xz ;;
    application/zstd) program=zstd ;;
    application/x-lzip) program=lzip ;;
    *) return 0 ;;
  esac
  if (umask 077 && "$program" --decompress --stdout <"$1" >"$1.plain"); then
    mv "$1.plain" "$1"
  else
    echo "Cannot decompress the user data with $program; it is stored as it is." >&2
    rm -f "$1.plain"
  fi
}

fetch_items() {
  local item name status
  for item in $items; do
    name=${item%%=*}
    status=$(umask 077 && request "$work/$name" --header "@$work/header" "$endpoint/latest/${item#*=}")
    case $status in
      200)
        if [ "$name" = user-data ]; then decompress "$work/$name"; else chmod 644 "$work/$name"; fi
        mv "$work/$name" "$folder/$name"
        ;;
      # Not set for this instance, or switched off.
      403 | 404) rm -f "$work/$name" "$folder/$name" ;;
      *)
        why="$endpoint answered a request for ${item#*=} with status $status"
        return 1
        ;;
    esac
  done
}

pause=1
until open_session && fetch_items; do
  if [ -n "$disabled" ]; then
    echo "The instance metadata service is off ($disabled answered with status 403): nothing to fetch." >&2
    exit 0
  fi
  if [ $((SECONDS + pause)) -ge "$limit" ]; then
    echo "No instance metadata after $SECONDS s: $why. This boot continues without user data, host name and EC2 key pair."
    exit 1
  fi
  echo "No instance metadata yet: $why. Next attempt in $pause s." >&2
  sleep "$pause"
  pause=$((pause < 8 ? pause * 2 : 15))
done
echo "Fetched from $endpoint after $SECONDS s: $(cd "$folder" && echo *)" >&2
