"""The harness: compose a spec, launch its run, read the log it emits, judge it, report. Never imports torch."""
