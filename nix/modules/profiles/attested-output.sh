# Add image-info.json to the output of systemd-repart in $out.
#
# $disk is a file name in $out, and $info the facts that are known before the build. $uki is the UKI, which is only in
# the disk of the output, so that there is no second one that could differ. $measure prints its measurements.
mkdir -p "$out/nix-support"
echo "file raw-image $out/$disk" >>"$out/nix-support/hydra-build-products"
python3 "$measure" "$uki" |
  jq \
    --argjson info "$info" \
    --arg file "$out/$disk" \
    --arg logical_bytes "$(stat --format=%s "$out/$disk")" \
    --arg root_hash "$(jq --raw-output '.[] | select(.type | endswith("-verity")).roothash' "$out/repart-output.json")" \
    '. as $measured | {$logical_bytes, $file} | $info * (. + {
      disks: {root: .},
      attested: ({$root_hash} + $measured)
    })' \
    >"$out/nix-support/image-info.json"
