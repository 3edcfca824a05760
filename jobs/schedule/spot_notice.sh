#!/bin/sh
# Drains this machine from its Ray cluster when AWS announces that it takes the spot instance back: Ray starts no more work
# here, and cluster.yaml's jobs go on elsewhere. cluster.yaml starts this on every worker; options go to `ray drain-node`.
# EC2 announces in its metadata, two minutes before:
# https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
metadata=${SPOT_METADATA:-http://169.254.169.254}/latest
until
  token=$(curl -sf -m 2 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$metadata/api/token")
  notice=$(curl -sf -m 2 -H "X-aws-ec2-metadata-token: $token" "$metadata/meta-data/spot/instance-action")
do
  sleep "${SPOT_LOOK_EVERY_S:-5}"
done
echo "spot notice: $notice"
exec ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "spot notice: $notice" \
  --deadline-remaining-seconds 110 "$@"
