"""`shardflow bench report`: result files of benchmarks become one page and pictures.

Every figure comes from the files. `files` reads them, one module per benchmark says what they show as `charts`,
`drawing` is the only one that knows matplotlib, `page` writes the HTML.
"""
