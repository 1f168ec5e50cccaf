# Read the user data of the instance as data, and write the secret files of this image. Nothing in it is executed.
#
# User data contains lines NAME=VALUE; empty lines and lines that begin with # are skipped. VMSNIX_ACCEPTED lists
# the accepted names as FILE:NAME. The value is what follows the first =, without any expansion; the value ssm:NAME
# stands for the parameter NAME of SSM Parameter Store, read with the credentials of the instance's role. If a line
# is wrong, no file is written. Problems are printed on the console with the number of the line, never with its value.
set -u -o pipefail

data=${VMSNIX_USER_DATA:-/run/ec2-metadata/user-data}
metadata=${VMSNIX_METADATA_ENDPOINT:-http://169.254.169.254}/latest

declare -A file_of content
for pair in $VMSNIX_ACCEPTED; do file_of[${pair#*:}]=${pair%%:*}; done

refuse() {
  echo "User data, line $number: $1 No secret was written."
  exit 1
}

get() {
  curl --silent --show-error --fail --max-time 10 --retry 5 --retry-connrefused --noproxy '*' --header @- "$metadata/$1" <<<"$session"
}

# Print the parameter $1 of SSM Parameter Store. The credentials are on standard input of curl, never in its arguments.
read_parameter() {
  local region domain role token
  session="X-aws-ec2-metadata-token-ttl-seconds: 60"
  token=$(curl --silent --show-error --fail --max-time 10 --retry 5 --noproxy '*' --request PUT --header "$session" \
    "$metadata/api/token") || return
  session="X-aws-ec2-metadata-token: $token"
  region=$(get meta-data/placement/region) && domain=$(get meta-data/services/domain) || return
  role=$(get meta-data/iam/security-credentials/) || return
  get "meta-data/iam/security-credentials/$role" |
    jq --raw-output '"user = \(.AccessKeyId + ":" + .SecretAccessKey | tojson)",
      "header = \("X-Amz-Security-Token: " + .Token | tojson)"' |
    curl --config - --silent --show-error --fail --max-time 20 --retry 5 --aws-sigv4 "aws:amz:$region:ssm" \
      --header "Content-Type: application/x-amz-json-1.1" --header "X-Amz-Target: AmazonSSM.GetParameter" \
      --data-binary "$(jq --null-input --arg name "$1" '{Name: $name, WithDecryption: true}')" \
      "${VMSNIX_SSM_ENDPOINT:-https://ssm.$region.$domain}/" |
    jq --raw-output --exit-status .Parameter.Value
}

[ -s "$data" ] || exit 0
number=0
while IFS= read -r line || [ -n "$line" ]; do
  number=$((number + 1))
  line=${line%$'\r'}
  case $line in
    '#!'*) [ "$number" -gt 1 ] || refuse "It is a script, and this image executes none. Write lines NAME=VALUE." ;;&
    '' | '#'*) continue ;;
  esac
  name=${line%%=*}
  [[ $line == *=* && $name =~ ^[A-Z][A-Z0-9_]*$ && -n ${file_of[$name]:-} ]] ||
    refuse "This image accepts only lines NAME=VALUE with the names ${!file_of[*]}."
  value=${line#*=}
  if [[ $value == ssm:* ]]; then
    parameter=${value#ssm:}
    value=$(read_parameter "$parameter") ||
      refuse "Cannot read the SSM parameter $parameter. Check its name and the rights of the instance's role."
  fi
  [[ -n $value && $value != *[[:cntrl:]]* ]] || refuse "The value of $name is empty or has control characters."
  # systemd reads the file: within double quotes it changes only these two characters.
  value=${value//\\/\\\\}
  content[${file_of[$name]}]+="$name=\"${value//\"/\\\"}\""$'\n'
done <"$data"

for file in "${!content[@]}"; do
  printf %s "${content[$file]}" | vmsnix-secret "$file"
done
