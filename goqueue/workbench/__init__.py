"""The DBA's workbench: checks, proofs, plans and notes of the statements."""
