"""The web page: its Python, HTML, CSS and JavaScript; `app` is where it begins."""
