# Block the instance metadata service for containers, and for the users and groups in VMSNIX_OWNERS.
#
#   block-metadata start    add the rules that are missing
#   block-metadata stop     remove them
#
# Docker sends the packets of all containers through the chain DOCKER-USER. It creates the chain only if it is
# missing, and never changes the rules in it. VMSNIX_OWNERS contains conditions of iptables' match `owner`, separated
# by semicolons, for processes of the machine itself.
set -eu

each_rule() {
  local owners owner
  for address in 169.254.169.254/32 fd00:ec2::254/128; do
    case $address in *::*) program=ip6tables ;; *) program=iptables ;; esac
    # Without IPv6 in the kernel there is nothing to block, and ip6tables fails.
    [ "$program" = iptables ] || [ -e /proc/net/if_inet6 ] || continue
    "$1" DOCKER-USER -d "$address"
    IFS=';' read -r -a owners <<<"${VMSNIX_OWNERS:-}"
    for owner in "${owners[@]}"; do
      # shellcheck disable=SC2086  # an option and its value
      "$1" OUTPUT -d "$address" -m owner $owner
    done
  done
}

add() {
  "$program" -w -N DOCKER-USER 2>/dev/null || true
  "$program" -w -C "$@" -j REJECT 2>/dev/null || "$program" -w -I "$@" -j REJECT
}

remove() {
  "$program" -w -D "$@" -j REJECT 2>/dev/null || true
}

case $1 in
  start) each_rule add ;;
  stop) each_rule remove ;;
esac
