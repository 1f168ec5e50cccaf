# Print the kernel's name of the disk that contains the root file system, such as nvme0n1 or vda.
#
# `root-disk NAME` prints nothing and succeeds only if NAME is that disk. The AMI's name of the root device does not
# find it: an AMI names /dev/sda1, but the disk is nvme0n1 on Nitro and xvda on Xen.
set -eu

number=$(stat --format=%Hd:%Ld /)
if ! device=$(readlink --canonicalize-existing "/sys/dev/block/$number"); then
  echo "root-disk: the root file system is not on a disk (device $number)." >&2
  exit 1
fi
[ ! -e "$device/partition" ] || device=${device%/*}
disk=${device##*/}

if [ $# -gt 0 ]; then
  [ "$1" = "$disk" ]
else
  echo "$disk"
fi
