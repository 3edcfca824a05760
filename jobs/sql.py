"""``camlake sql``: queries an output in SQL, and prints the statements with which other engines read it."""

import sys
from typing import TYPE_CHECKING

from jobs.terminal.console import Screen, main, verb
from pipeline.storage.lake.records import refuse_no_output
from schemas.errors import CamlakeError
from schemas.options.sql import SqlConfig
from schemas.url_secrets import safe_url

if TYPE_CHECKING:
    import duckdb


def run(config: SqlConfig, screen: Screen) -> None:
    """Run the query, the shell, or print the statements; raises UsageError for SQL that is not one valid SELECT."""
    refuse_no_output(config.out, config)
    if config.ddl:
        from pipeline.outputs.sql.ddl import statements

        for statement in statements(config, config.ddl):
            print(statement, end="\n\n")
        return
    from pipeline.outputs.sql.sql_views import open_views

    with open_views(config) as con:
        if config.query:
            answer(con, config.query, config, screen)
        else:
            shell(con, config, screen)


def answer(con: "duckdb.DuckDBPyConnection", query: str, config: SqlConfig, screen: Screen) -> None:
    """Run one query and write its result."""
    from pipeline.outputs.sql.result_files import table_rows, whole_file, write_result
    from pipeline.outputs.sql.sql_views import one_select

    relation = one_select(con, query)
    kind = config.result_format
    if config.to:
        with whole_file(config.to, config, config.out) as sink:
            rows = write_result(relation, kind, sink)
        screen.result(f"{safe_url(config.to)}: {rows} rows", rows=rows, to=safe_url(config.to))
    elif kind == "table":
        shown, more = table_rows(relation, config.rows)
        screen.table("", list(relation.columns), shown)
        if more:
            screen.say(f"only the first {config.rows} rows are shown; --rows N shows more, --format csv or --to all")
    else:
        sys.stdout.flush()
        write_result(relation, kind, sys.stdout.buffer)
        sys.stdout.flush()


def shell(con: "duckdb.DuckDBPyConnection", config: SqlConfig, screen: Screen) -> None:
    """Answer the queries of standard input, each ended by ``;``, until its end; a wrong query is said and passed."""
    if sys.stdin.isatty():
        import readline  # noqa: F401 - gives ``input`` its history and editing

        screen.say("tables: SHOW TABLES; end a query with ; and the shell with Ctrl-D")
    lines: list[str] = []
    while (line := _next_line("...> " if lines else "sql> ")) is not None:
        lines.append(line)
        if not line.rstrip().endswith(";"):
            continue
        query, lines = "\n".join(lines), []
        try:
            answer(con, query, config, screen)
        except CamlakeError as error:
            screen.say(str(error))
    if "".join(lines).strip():
        screen.say("the last query has no ; at its end and was not run")


def _next_line(prompt: str) -> str | None:
    try:
        return input(prompt if sys.stdin.isatty() else "")
    except EOFError:
        return None


ABOUT = "Query the tables in SQL, or print what Athena, Trino, Spark and DuckDB need to read them."

command = verb(
    ABOUT,
    SqlConfig,
    run,
    'camlake sql s3://bucket/labels "SELECT label, count(*) FROM boxes GROUP BY label"',
)

if __name__ == "__main__":
    main(command)
