"""A bundle on one page that people look at: what is known of it, drawn, in a file that needs no network."""
