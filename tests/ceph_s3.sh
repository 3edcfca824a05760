#!/usr/bin/env bash
# Runs a real S3 server for the tests: Ceph on one node, kept in memory, behind its RADOS gateway.
#   ceph_s3.sh start DIR PORT   prints the endpoint once it answers; the monitor takes PORT+1
#   ceph_s3.sh stop DIR
# Access key "testkey", secret "testsecret". Packages: ceph-mon ceph-osd ceph-mgr radosgw ceph-common.
set -euo pipefail

readonly WAIT_S=60

write_config() {
  local dir=$1 port=$2
  cat >"$dir/ceph.conf" <<CONF
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon host = [v2:127.0.0.1:$((port + 1))]
mon initial members = a
mon data = $dir/mon
mgr data = $dir/mgr
osd data = $dir/osd
public addr = 127.0.0.1
public network = 127.0.0.0/8
keyring = $dir/keyring
run dir = $dir/run
pid file = $dir/run/\$name.pid
admin socket = $dir/run/\$name.asok
log file = $dir/log/\$name.log
# one copy of everything, on the only node there is
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
osd crush chooseleaf type = 0
# few placement groups, so that the first bucket is there in seconds
osd pool default pg num = 8
osd pool default pg autoscale mode = off
# each change of the cluster's maps waits this long for another one, by itself 1 s; a start makes dozens, one by one
paxos propose interval = 0.05
# objects live in memory; a nearly full disk of the test machine is no reason to stop
osd objectstore = memstore
memstore device bytes = $((4 << 30))
mon data avail crit = 1
mon data avail warn = 1
[client.rgw]
rgw data = $dir/rgw
rgw frontends = beast endpoint=127.0.0.1:$port
rgw thread pool size = 32
CONF
}

write_keys() {
  local keyring=$1
  add_key() { ceph-authtool "$keyring" --gen-key -n "$@"; }
  ceph-authtool --create-keyring "$keyring"
  add_key mon. --cap mon 'allow *'
  add_key client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
  add_key client.rgw --cap mon 'allow rw' --cap osd 'allow rwx' --cap mgr 'allow rw'
  add_key mgr.x --cap mon 'allow profile mgr' --cap osd 'allow *'
  add_key osd.0 --cap mon 'allow profile osd' --cap mgr 'allow profile osd' --cap osd 'allow *'
}

wait_for() {
  local what=$1 deadline=$((SECONDS + WAIT_S))
  shift
  until "$@"; do
    ((SECONDS < deadline)) || { echo "no $what within $WAIT_S s" && return 1; }
    sleep 0.3
  done
}

osd_is_up() { ceph -c "$1" osd stat | grep -q '1 up'; }

# Bash's own socket, since a bare machine has no curl.
port_answers() { (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

start_daemons() {
  local dir=$1 port=$2 conf=$1/ceph.conf disk id
  monmaptool --create --addv a "[v2:127.0.0.1:$((port + 1))]" --fsid "$(ceph-conf -c "$conf" --lookup fsid)" "$dir/monmap"
  ceph-mon -c "$conf" --mkfs -i a --monmap "$dir/monmap" --keyring "$dir/keyring"
  ceph-mon -c "$conf" -i a
  ceph-mgr -c "$conf" -i x
  disk=$(cat /proc/sys/kernel/random/uuid)
  id=$(ceph -c "$conf" osd new "$disk")
  ceph -c "$conf" auth import -i "$dir/keyring"
  ceph-osd -c "$conf" -i "$id" --mkfs --osd-uuid "$disk"
  ceph-osd -c "$conf" -i "$id"
  wait_for "storage daemon" osd_is_up "$conf"
  radosgw -c "$conf" -n client.rgw
  wait_for "gateway on port $port" port_answers "$port"
  radosgw-admin -c "$conf" -n client.rgw user create --uid=test --display-name=test --access-key=testkey \
    --secret=testsecret
}

start() {
  mkdir -p "$1"/{mon,mgr,osd,rgw,run,log}
  local dir port=$2
  dir=$(cd "$1" && pwd)
  log=$dir/log/start.log
  exec 3>&1 4>&2 >"$log" 2>&1 </dev/null
  trap 'failed=$?; ((failed == 0)) || tail -n 20 "$log" >&4' EXIT
  write_config "$dir" "$port"
  write_keys "$dir/keyring"
  # The daemons must not hold the caller's pipe open.
  start_daemons "$dir" "$port" 3>&- 4>&-
  echo "http://127.0.0.1:$port" >&3
}

stop() {
  local pid_file
  # Nothing is kept, so nothing needs a clean end.
  for pid_file in "$1"/run/*.pid; do
    [[ -e $pid_file ]] && kill -9 "$(cat "$pid_file")" 2>/dev/null
  done
  return 0
}

case ${1:-} in
  start) start "$2" "$3" ;;
  stop) stop "$2" ;;
  *) sed -n 2,5p "$0" && exit 2 ;;
esac
