"""The privileged state machines: sessions, timers, the manifest. Privileged, and plainly said: no plugin can be one."""
