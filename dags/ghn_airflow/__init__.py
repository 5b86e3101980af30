"""What the DAGs share: one operator, its back-ends, assets, and defaults. Nothing heavy is imported here."""
