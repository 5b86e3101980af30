"""Everything on one machine: the object store, the demo, and Airflow with all DAGs."""
