#include "deploy/baton/jsonl.h"

#include "common/base/utf8.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static void answer_line(const char *line, size_t n, unsigned json_flags, jsonl_fn answer, void *ctx,
                        struct buf *out)
{
    struct json_doc *doc = NULL;
    struct status st;

    if (json_parse(line, n, json_flags, &doc, &st) != ST_OK)
        status_wrap(&st, "the line is not JSON");
    else
        answer(ctx, json_root(doc), out, &st);
    if (st.code != ST_OK) {
        struct buf reason = {0}; /* a message may be cut, or quote what is no UTF-8 */
        utf8_append_lossy(&reason, st.msg, strlen(st.msg));
        out->len = 0;
        buf_puts(out, "{\"error\": ");
        json_write_string(out, reason.data ? reason.data : "", reason.len);
        buf_printf(out, ", \"status\": %d}", status_http(st.code));
        buf_deinit(&reason);
    }
    buf_puts(out, "\n");
    json_free(doc);
}

int jsonl_run(unsigned json_flags, jsonl_fn answer, void *ctx)
{
    struct buf out = {0};
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    bool ok = true;

    while (ok && (n = getline(&line, &cap, stdin)) >= 0) {
        if (n > 0 && line[n - 1] == '\n')
            n--;
        if (n == 0 || (n == 1 && line[0] == '\r'))
            continue;
        out.len = 0;
        answer_line(line, (size_t)n, json_flags, answer, ctx, &out);
        ok = fwrite(out.data, 1, out.len, stdout) == out.len && fflush(stdout) == 0;
    }
    if (ok && ferror(stdin)) {
        fprintf(stderr, "baton: standard input: %s\n", strerror(errno));
        ok = false;
    } else if (!ok) {
        fprintf(stderr, "baton: standard output: %s\n", strerror(errno));
    }
    free(line);
    buf_deinit(&out);
    return ok ? 0 : 1;
}
