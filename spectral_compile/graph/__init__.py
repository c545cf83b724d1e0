"""Reading and rewriting traced graphs: which product is what, and how nodes are put in."""
