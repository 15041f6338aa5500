"""The benchmark: methods trained and measured on data sets, cell by cell, and the papers' tables beside them."""
