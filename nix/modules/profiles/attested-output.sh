# Add image-info.json to the output of systemd-repart in $out.
#
# $disk is a file name in $out, and $info the facts that are known before the build. The UKI is only in the disk, so
# that the output has no second one that could differ.
mkdir -p "$out/nix-support"
echo "file raw-image $out/$disk" >>"$out/nix-support/hydra-build-products"
jq --null-input \
  --argjson info "$info" \
  --arg file "$out/$disk" \
  --arg logical_bytes "$(stat --format=%s "$out/$disk")" \
  --arg root_hash "$(jq --raw-output '.[] | select(.type | endswith("-verity")).roothash' "$out/repart-output.json")" \
  '{$logical_bytes, $file} | $info * (. + {disks: {root: .}, attested: {$root_hash}})' \
  >"$out/nix-support/image-info.json"
