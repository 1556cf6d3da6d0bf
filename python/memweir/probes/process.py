"""x"""

run_probe_process = None
