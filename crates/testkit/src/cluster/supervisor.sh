# Holds the namespaces of one test cluster while its standard input is open, and clears up afterwards.
# Run as `sh -c SCRIPT gqla-supervisor STATE`. Prints the host's PID of the cluster's first process when all is ready.
trap '' HUP INT TERM
state=$1
echo $$ > "$state/supervisor.pid"
mkdir -p /var/lib/kubelet /var/lib/cni

# The first process of the PID namespace is a shell, which reaps orphans, that waits for its input to end. When it goes the kernel kills everything else in the namespace.
unshare --pid --fork --kill-child --mount --propagation private --net sh -c '
  read -r pid rest < /proc/self/stat
  mount -t proc proc /proc && mount -t tmpfs tmpfs /run && mkdir /run/netns /run/lock || exit 1
  echo "$pid"
  exec > /dev/null
  cat
  exit 0'

# The last process is gone; cgroups and files are all that a kernel does not take back by itself.
groups() { find /sys/fs/cgroup -mindepth 1 -depth -type d \( -path "*/gqla-$$" -o -path "*/gqla-$$/*" \) "$@" 2> /dev/null; }
for attempt in $(seq 50); do
  groups -exec rmdir {} +
  [ -z "$(groups)" ] && break
  sleep 0.1
done
if [ -e "$state/keep" ]; then rm -f "$state/supervisor.pid"; else rm -rf --one-file-system "$state"; fi
