"""Crashes: what was acknowledged survives SIGKILL of the daemon and of its workers, at random instants and at every named one."""
