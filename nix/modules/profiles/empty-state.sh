# Delete the content of the directories $@, also behind a symbolic link, or fail.
#
# systemd-tmpfiles is not enough: its service succeeds, and leaves files with the attribute "immutable" there.
set -eu

find -H "$@" -mindepth 1 -delete
