"""The report on a collection: a page to look at, made on request or once a week."""
