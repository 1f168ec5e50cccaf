# runc, except that it starts no privileged container.
#
# Docker gives a privileged container access to all devices, which is the rule without a type in the container's
# specification. A specification that cannot be read is refused too.
set -eu

bundle=.
starts=
previous=
for argument in "$@"; do
  case $argument in
    create | restore | run) starts=yes ;;
    --bundle=*) bundle=${argument#*=} ;;
  esac
  case $previous in -b | --bundle) bundle=$argument ;; esac
  previous=$argument
done

if [ -n "$starts" ]; then
  privileged=$(jq 'any(.linux.resources.devices[]?; .allow and (.type // "a") == "a")' "$bundle/config.json") || privileged=unknown
  if [ "$privileged" != false ]; then
    echo "This machine starts no privileged containers. Remove \"privileged\" from the container's definition." >&2
    exit 1
  fi
fi
exec runc "$@"
