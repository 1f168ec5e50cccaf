# Add the UKI and image-info.json to the output of systemd-repart in $out.
#
# $disk and $uki are file names in $out; $ukiSource is the UKI, and $info the facts that are known before the build.
cp "$ukiSource" "$out/$uki"
mkdir -p "$out/nix-support"
echo "file raw-image $out/$disk" >>"$out/nix-support/hydra-build-products"
jq --null-input \
  --argjson info "$info" \
  --arg file "$out/$disk" \
  --arg logical_bytes "$(stat --format=%s "$out/$disk")" \
  --arg root_hash "$(jq --raw-output '.[] | select(.type | endswith("-verity")).roothash' "$out/repart-output.json")" \
  --arg uki "$uki" \
  '{$logical_bytes, $file} | $info * (. + {disks: {root: .}, attested: {$root_hash, $uki}})' \
  >"$out/nix-support/image-info.json"
