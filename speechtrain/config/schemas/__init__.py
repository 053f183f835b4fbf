"""The schemas of each group, a file for every few groups; `config.schema` puts them together."""
