"""Read models: tables that follow from the journal. Any of them may be dropped; it is built again from the events."""
