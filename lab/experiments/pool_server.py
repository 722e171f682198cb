"""Imported by the process that a pool forks its workers from, and by nobody else: a session of its own, so that Ctrl-C
and a signal to the terminal's whole group are the pool's alone to hear. It ends when the pool does."""

import multiprocessing
import os

if multiprocessing.current_process().name == "MainProcess" and os.getpgrp() != os.getpid():
    os.setsid()
