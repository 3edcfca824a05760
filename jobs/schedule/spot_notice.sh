#!/bin/sh
# Drains this machine from its Ray cluster when AWS announces that it takes the spot instance back: Ray starts no more work
# here, and the jobs go on elsewhere. cluster.yaml starts this on every worker; options go to `ray drain-node`.
# EC2 announces in its metadata, two minutes before:
# https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
metadata=${SPOT_METADATA:-http://169.254.169.254}/latest
command -v curl >/dev/null || { echo "spot_notice.sh: curl is missing; nothing drains this machine" >&2; exit 1; }

ask() {
  curl --noproxy '*' -sf -m 2 "$@"
}

until
  token=$(ask -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$metadata/api/token")
  notice=$(ask -H "X-aws-ec2-metadata-token: $token" "$metadata/meta-data/spot/instance-action")
do
  sleep "${SPOT_LOOK_EVERY_S:-5}"
done
echo "spot notice: $notice"
for _ in 1 2 3 4 5; do # The head may be busy.
  ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "spot notice: $notice" \
    --deadline-remaining-seconds 110 "$@" && exit
  sleep 5
done
exit 1
