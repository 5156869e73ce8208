"""Load and cost harness: ``python -m bench load|compare|footprint|soak|relay``, each with ``--help``."""
