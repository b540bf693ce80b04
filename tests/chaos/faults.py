"""Carries out the faults of a plan on a fleet, and ends those that last.

Owns what each kind of fault does. The plan decides when and where. Knows nothing of the program's insides.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time

from emulators.anka.engine.failure import AnkaError

_LIMIT_WORDS = {"message": "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."}
_ERROR_WORDS = {"message": "Server Error"}
#: Seconds until an operator notices a leaked slot.
_LEAKS_FOR = 10.0
_RUNNERS_ROUTE = r"^/_services/"


class Hand:
    """Strikes a fleet. `later(seconds, act)` schedules the end of a fault; `dice` picks a target among those that exist."""

    def __init__(self, fleet, later, seed):
        self._fleet = fleet
        self._later = later
        self._dice = random.Random(seed)  # noqa: S311  a die, not a secret
        self._stopped = set()
        self._timers = []
        self._foreign = 0
        #: Kind -> how often it struck, and how often it found no target.
        self.struck = {}
        self.missed = {}

    def strike(self, fault):
        """Carry out one fault."""
        host = None if fault.host is None else self._fleet.hosts[fault.host]
        act, subject = (_ON_ALL[fault.kind], ()) if host is None else (_ON_HOST[fault.kind], (host,))
        counts = self.struck
        try:
            off = host is not None and not host.wanted
            if off or act(self, *subject, **fault.more) is False:
                counts = self.missed
        except (ProcessLookupError, AnkaError):
            counts = self.missed
        counts[fault.kind] = counts.get(fault.kind, 0) + 1

    def heal(self):
        """End all lasting faults now."""
        fleet = self._fleet
        for timer in self._timers:
            timer.join()
        for pid in list(self._stopped):
            self._go_on(pid)
        for host in fleet.hosts:
            host.redis.heal()
            host.anka.clear_faults()
            host.anka.set(registry_down=False)
            if host.refuses_since is not None:
                host.power_off()
            self._sight(host)
            for vm in host.anka.vms():
                if vm["name"].startswith("foreign-"):
                    host.anka.stop_foreign(vm["name"])
            self._restore(host)
            host.drain_file.unlink(missing_ok=True)
            if not host.wanted and not host.dead:
                host.launch()
        fleet.github.clear_faults()
        fleet.github.set(down=False)
        if not fleet.redis.running:
            fleet.redis.start()
        with contextlib.suppress(ProcessLookupError):
            fleet.redis.thaw()

    # ---- processes ----

    def _send(self, host, pid, number):
        os.kill(pid, number)

    def _stop(self, pid, seconds, *, by_timer=False):
        os.kill(pid, signal.SIGSTOP)
        self._stopped.add(pid)
        if by_timer:
            # The harness itself may wait for a lock that the stopped process holds.
            timer = threading.Timer(seconds, self._go_on, (pid,))
            self._timers.append(timer)
            timer.start()
        else:
            self._later(seconds, lambda: self._go_on(pid))

    def _go_on(self, pid):
        self._stopped.discard(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def supervisor_kill(self, host):
        """SIGKILL."""
        if not host.lives():
            return False
        host.process.kill()
        return True

    def supervisor_stop(self, host, seconds):
        """SIGSTOP for a while."""
        if not host.lives():
            return False
        pid = host.process.pid
        host.down()
        self._stop(pid, seconds)
        self._later(seconds, lambda: host.up() if host.lives() and host.process.pid == pid else None)
        return True

    def supervisor_restart(self, host):
        """SIGUSR2."""
        return self._signal(host, signal.SIGUSR2)

    def supervisor_drain(self, host):
        """SIGTERM. When the supervisor has ended, an operator starts it again."""
        # Only once: a second SIGTERM would interrupt its jobs.
        if host.drained == host.process.pid or not self._signal(host, signal.SIGTERM):
            return False
        host.drained = host.process.pid
        # From now on it takes no job, and the checker does not expect it to.
        host.down()
        return True

    def _signal(self, host, number):
        # Before it has installed its handlers, a signal would end it. That is a kill, which is a fault of its own.
        if not host.lives() or (host.process.pid not in self._stopped and host.get("/healthz")[0] != 200):
            return False
        host.send(number)
        return True

    def supervisor_reload(self, host, how, seconds):
        """SIGHUP with a changed or broken file; later SIGHUP with the original file."""
        text = host.config_path.read_text() if host.config_path.exists() else ""
        changed = {
            "broken": text + "\nservices: [",
            "empty": "",
            "interval": text.replace("sleep_interval: 1.0", "sleep_interval: 0.9"),
            "same": text,
        }
        if how == "gone":
            host.config_path.unlink(missing_ok=True)
        else:
            host.config_path.write_text(changed[how])
        self._later(seconds, lambda: (self._restore(host), self._signal(host, signal.SIGHUP)))
        return self._signal(host, signal.SIGHUP)

    def _restore(self, host):
        host.write_config()

    def _worker(self, host, service):
        workers = host.workers() if host.lives() else []
        return workers[service] if service < len(workers) else None

    def worker_kill(self, host, service):
        """SIGKILL."""
        return self._to_worker(host, service, signal.SIGKILL)

    def worker_term(self, host, service):
        """SIGTERM: detach."""
        return self._to_worker(host, service, signal.SIGTERM)

    def _to_worker(self, host, service, number):
        pid = self._worker(host, service)
        if pid is None:
            return False
        os.kill(pid, number)
        return True

    def worker_stop(self, host, service, seconds):
        """SIGSTOP for a while."""
        pid = self._worker(host, service)
        if pid is None:
            return False
        self._stop(pid, seconds)
        return True

    def all_kill(self, host):
        """SIGKILL to supervisor and workers at once; commands and guests go on."""
        host.kill_all()

    def command_kill(self, host):
        """SIGKILL to a running `anka` command."""
        pids = host.in_flight()
        if not pids:
            return False
        os.kill(self._dice.choice(pids), signal.SIGKILL)
        return True

    def command_stop(self, host, seconds):
        """SIGSTOP to a running `anka` command."""
        pids = host.in_flight()
        if not pids:
            return False
        self._stop(self._dice.choice(pids), seconds, by_timer=True)
        return True

    def drain_file(self, host, seconds):
        """The drain file exists for a while."""
        path = host.drain_file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        begun = time.time()

        def remove():
            path.unlink(missing_ok=True)
            host.outages.append((begun, time.time()))

        self._later(seconds, remove)

    # ---- Redis ----

    def _all_out(self, begun):
        self._fleet.outages.append((begun, time.time()))

    def redis_kill(self, seconds):
        """SIGKILL to Redis; an empty one starts after a while."""
        redis, begun = self._fleet.redis, time.time()
        if not redis.running:
            return False
        redis.stop()

        def start():
            if not redis.running:
                redis.start()
            self._all_out(begun)

        self._later(seconds, start)
        return True

    def redis_flush(self):
        """Redis loses all keys."""
        if not self._fleet.redis.running or self._fleet.redis.pid in self._stopped:
            return False
        self._fleet.redis.flush()
        return True

    def redis_freeze(self, seconds):
        """Redis hangs for a while."""
        redis, begun = self._fleet.redis, time.time()
        if not redis.running or redis.pid in self._stopped:
            return False
        self._stop(redis.pid, seconds)
        self._later(seconds, lambda: self._all_out(begun))
        return True

    def redis_slow(self, host, latency, seconds):
        """Each packet between this host and Redis arrives late."""
        host.redis.latency, begun = latency, time.time()
        self._later(seconds, lambda: self._sight(host, begun))

    def redis_partition(self, host, seconds):
        """This host cannot reach Redis for a while."""
        host.redis.deaf, begun = True, time.time()
        self._later(seconds, lambda: self._sight(host, begun))

    def _sight(self, host, begun=None):
        host.redis.heal()
        if begun is not None:
            host.outages.append((begun, time.time()))

    def redis_cut(self):
        """Every connection to Redis breaks; new ones work."""
        for host in self._fleet.hosts:
            host.redis.cut()

    # ---- GitHub ----

    def github_error(self, method, route, status, times):
        """GitHub answers with 5xx."""
        self._fleet.github.fault(method, route, status=status, body=_ERROR_WORDS, times=times)

    def github_limit(self, method, route, status, retry_after):
        """GitHub answers with its secondary rate limit."""
        headers = {"Retry-After": str(retry_after)}
        self._fleet.github.fault(method, route, status=status, body=_LIMIT_WORDS, headers=headers)

    def github_refusal(self, method, route, status, times):
        """GitHub answers with 401 or 404, as in its real incidents."""
        words = {"message": "Bad credentials" if status == 401 else "Not Found"}
        self._fleet.github.fault(method, route, status=status, body=words, times=times)

    def github_broken(self, method, route, how, times):
        """The connection to GitHub breaks before, during, or after the effect."""
        self._fleet.github.fault(method, route, times=times, **{how: True})

    def github_slow(self, method, route, how, by, times):
        """GitHub's answer arrives late, or slowly."""
        self._fleet.github.fault(method, route, times=times, **{how: by})

    def github_down(self, seconds):
        """Neither hosts nor runners can reach GitHub."""
        github, begun = self._fleet.github, time.time()
        github.set(down=True)

        def up():
            github.set(down=False)
            self._all_out(begun)

        self._later(seconds, up)

    def github_runners(self, how, times):
        """The connection between a runner and GitHub fails."""
        self._fleet.github.fault("*", _RUNNERS_ROUTE, times=times, **{how: 1.0 if how == "delay" else True})

    # ---- Anka ----

    def anka_error(self, host, verb, when, message, code, times):
        """The command fails after it did nothing, half or all of its work."""
        host.anka.fault(verb, when=when, message=message, code=code, times=times)

    def anka_kill(self, host, verb, when):
        """A SIGKILL ends the command at that point."""
        host.anka.fault(verb, kill_at=when)

    def anka_slow(self, host, verb, when, by, times):
        """The command is slow."""
        host.anka.fault(verb, when=when, delay=by, times=times)

    def anka_mute(self, host, verb, stdout):
        """The command does its work, but its output is empty or garbage."""
        host.anka.fault(verb, when="after", stdout=stdout)

    def anka_leak(self, host):
        """The kernel leaks the slot of the next VM; some seconds later an operator reboots the host."""
        if host.refuses_since is not None:
            return False
        host.anka.set(leak_slot=1)
        host.refuses_since = time.time()
        self._later(_LEAKS_FOR, lambda: self.host_reboot(host, 1.0) if host.wanted else None)
        return True

    def registry_down(self, host, seconds):
        """Anka's registry does not answer for a while."""
        host.anka.set(registry_down=True)
        self._later(seconds, lambda: host.anka.set(registry_down=False))

    # ---- the host ----

    def vm_death(self, host, status):
        """One of our VMs ends by itself."""
        names = [name for name in host.anka.running() if name.startswith("anklet-vm-")]
        if not names:
            return False
        name = self._dice.choice(sorted(names))
        host.deaths.append((time.time(), name))
        host.anka.halt(name, status=status)
        return True

    def foreign_vm(self, host, seconds):
        """Another user starts a VM on the host."""
        self._foreign += 1
        name = f"foreign-{self._foreign}"
        host.anka.start_foreign(name)
        self._later(seconds, lambda: host.anka.stop_foreign(name))

    def host_reboot(self, host, seconds):
        """Everything on the host dies at once; it boots again after a while."""
        host.power_off()
        self._later(seconds, lambda: None if host.dead else host.launch())


_ON_HOST = {
    "supervisor-kill": Hand.supervisor_kill,
    "supervisor-stop": Hand.supervisor_stop,
    "supervisor-restart": Hand.supervisor_restart,
    "supervisor-drain": Hand.supervisor_drain,
    "supervisor-reload": Hand.supervisor_reload,
    "worker-kill": Hand.worker_kill,
    "worker-stop": Hand.worker_stop,
    "worker-term": Hand.worker_term,
    "all-kill": Hand.all_kill,
    "command-kill": Hand.command_kill,
    "command-stop": Hand.command_stop,
    "drain-file": Hand.drain_file,
    "redis-slow": Hand.redis_slow,
    "redis-partition": Hand.redis_partition,
    "anka-error": Hand.anka_error,
    "anka-kill": Hand.anka_kill,
    "anka-slow": Hand.anka_slow,
    "anka-hang": Hand.anka_slow,
    "anka-mute": Hand.anka_mute,
    "anka-leak": Hand.anka_leak,
    "registry-down": Hand.registry_down,
    "foreign-vm": Hand.foreign_vm,
    "vm-death": Hand.vm_death,
    "host-reboot": Hand.host_reboot,
}
_ON_ALL = {
    "redis-kill": Hand.redis_kill,
    "redis-flush": Hand.redis_flush,
    "redis-freeze": Hand.redis_freeze,
    "redis-cut": Hand.redis_cut,
    "github-error": Hand.github_error,
    "github-limit": Hand.github_limit,
    "github-refusal": Hand.github_refusal,
    "github-broken": Hand.github_broken,
    "github-slow": Hand.github_slow,
    "github-down": Hand.github_down,
    "github-runners": Hand.github_runners,
}
