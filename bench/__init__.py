"""Load and cost harness: ``python -m bench load|compare|sweep|footprint|soak``, each with ``--help``."""
