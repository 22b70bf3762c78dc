"""Unlearning by any objective and retain term, as runs in folders, one method or many in turn."""
