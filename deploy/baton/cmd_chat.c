/*
 * baton chat: one streaming chat request to a router, shown as it comes, with the way it took.
 */
#include "deploy/baton/commands.h"

#include <netdb.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/buf.h"
#include "common/base/flags.h"
#include "common/base/json.h"

struct chat_options {
    const char *url, *model, *api_key;
    int64_t max_tokens;
    double temperature;
    bool stats, check_ready;
};

/* The two halves of "http://HOST:PORT". */
struct endpoint {
    char host[256], port[8];
};

static enum status_code parse_url(const char *url, struct endpoint *e, struct status *st)
{
    if (sscanf(url, "http://%255[^:/]:%7[0-9]", e->host, e->port) != 2)
        return status_set(st, ST_INVALID, "--url %s: expected http://HOST:PORT", url);
    return status_ok(st);
}

static enum status_code dial(const struct endpoint *e, int *fd, struct status *st)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list = NULL;
    int rc = getaddrinfo(e->host, e->port, &hints, &list);

    if (rc != 0)
        return status_set(st, ST_UNAVAILABLE, "%s: %s", e->host, gai_strerror(rc));
    *fd = -1;
    for (struct addrinfo *a = list; a != NULL && *fd < 0; a = a->ai_next) {
        *fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
        if (*fd >= 0 && connect(*fd, a->ai_addr, a->ai_addrlen) != 0) {
            close(*fd);
            *fd = -1;
        }
    }
    freeaddrinfo(list);
    if (*fd < 0)
        return status_set(st, ST_UNAVAILABLE, "nothing listens on %s:%s: is the router running?",
                          e->host, e->port);
    return status_ok(st);
}

/* Sends a request with Connection: close and returns the stream to read its answer from. */
static enum status_code request(const struct chat_options *o, const char *method, const char *path,
                                const struct buf *body, FILE **answer, struct status *st)
{
    struct endpoint e;
    struct buf head = {0};
    int fd = -1;

    if (parse_url(o->url, &e, st) != ST_OK || dial(&e, &fd, st) != ST_OK)
        return st->code;
    buf_printf(&head, "%s %s HTTP/1.1\r\nHost: %s:%s\r\nConnection: close\r\n", method, path,
               e.host, e.port);
    buf_printf(&head,
               "Content-Type: application/json\r\nContent-Length: %zu\r\nx-baton-debug: 1\r\n",
               body->len);
    if (o->api_key != NULL)
        buf_printf(&head, "Authorization: Bearer %s\r\n", o->api_key);
    buf_puts(&head, "\r\n");
    buf_append(&head, body->data, body->len);
    status_ok(st);
    for (size_t at = 0; at < head.len && st->code == ST_OK;) {
        ssize_t n = send(fd, head.data + at, head.len - at, MSG_NOSIGNAL);

        if (n <= 0)
            status_set(st, ST_UNAVAILABLE, "the router closed the connection");
        else
            at += (size_t)n;
    }
    buf_deinit(&head);
    *answer = st->code == ST_OK ? fdopen(fd, "r") : NULL;
    if (*answer == NULL)
        close(fd);
    return st->code;
}

/* Reads status line and headers; returns the status, and whether the body is chunked. */
static int read_head(FILE *f, bool *chunked)
{
    char *line = NULL;
    size_t cap = 0;
    int code = 0;

    *chunked = false;
    if (getline(&line, &cap, f) > 0)
        sscanf(line, "HTTP/1.1 %d", &code);
    while (getline(&line, &cap, f) > 0 && strcmp(line, "\r\n") != 0)
        if (strncasecmp(line, "transfer-encoding: chunked", 26) == 0)
            *chunked = true;
    free(line);
    return code;
}

/* Appends the next part of the body; false at its end. */
static bool read_part(FILE *f, bool chunked, struct buf *out)
{
    char part[4096];
    size_t want = sizeof(part), n;

    if (chunked && (fscanf(f, "%zx\r\n", &want) != 1 || want == 0))
        return false;
    do {
        n = fread(part, 1, want < sizeof(part) ? want : sizeof(part), f);
        buf_append(out, part, n);
        want -= n;
    } while (chunked && want > 0 && n > 0);
    if (chunked && fscanf(f, "\r\n") < 0)
        return false;
    return n > 0;
}

static void show_text(const struct json *delta, const char *key, bool *dim)
{
    const struct json *text = json_get(delta, key);
    bool reasoning = key[0] == 'r', tty = isatty(STDOUT_FILENO);

    if (text == NULL || text->type != JSON_STRING || text->len == 0)
        return;
    if (tty && reasoning != *dim)
        fputs(reasoning ? "\033[2m" : "\033[0m", stdout);
    *dim = reasoning;
    fwrite(text->text, 1, text->len, stdout);
    fflush(stdout);
}

/* Prints the members of the path object: "  kv_bytes   1234". */
static void show_path(const struct json *path)
{
    printf("path of the request:\n");
    for (uint32_t i = 0; i < path->len; i++) {
        const struct json *v = &path->members[i].value;

        if (v->type == JSON_STRING || v->type == JSON_NUMBER)
            printf("  %-20s %s\n", path->members[i].key, v->text);
    }
}

static void show_usage(const struct json *usage)
{
    const struct json *in = json_get(usage, "prompt_tokens"),
                      *out = json_get(usage, "completion_tokens");

    if (in != NULL && out != NULL)
        printf("\n\nusage:\n  %-20s %s\n  %-20s %s\n", "prompt_tokens", in->text,
               "completion_tokens", out->text);
}

/* One SSE payload. @return false when it was an error */
static bool show_event(const char *data, size_t len, bool stats, bool *dim)
{
    const struct json *root, *choices, *path, *usage;
    struct json_doc *doc;
    struct status st;
    bool ok;

    if (len == 6 && memcmp(data, "[DONE]", 6) == 0)
        return true;
    if (json_parse(data, len, 0, &doc, &st) != ST_OK) {
        fprintf(stderr, "baton chat: unreadable event: %s\n", st.msg);
        return false;
    }
    root = json_root(doc);
    choices = json_get(root, "choices");
    if (choices != NULL && choices->type == JSON_ARRAY && choices->len > 0) {
        const struct json *delta = json_get(&choices->items[0], "delta");

        if (delta != NULL) {
            show_text(delta, "reasoning_content", dim);
            show_text(delta, "content", dim);
        }
    }
    path = json_get(root, "baton");
    if (stats && path != NULL && path->type == JSON_OBJECT)
        show_path(path);
    usage = json_get(root, "usage");
    if (stats && usage != NULL && usage->type == JSON_OBJECT)
        show_usage(usage);
    ok = json_get(root, "error") == NULL;
    if (!ok)
        fprintf(stderr, "\nbaton chat: %.*s\n", (int)len, data);
    json_free(doc);
    return ok;
}

/* Shows every complete "data: ...\n" line of the buffer and keeps the rest. */
static bool show_lines(struct buf *body, bool stats, bool *dim)
{
    bool ok = true;
    size_t at = 0;
    char *end;

    while (at < body->len && (end = memchr(body->data + at, '\n', body->len - at)) != NULL) {
        char *line = body->data + at;
        size_t len = (size_t)(end - line);

        if (len > 6 && memcmp(line, "data: ", 6) == 0)
            ok &= show_event(line + 6, len - 6, stats, dim);
        at += len + 1;
    }
    memmove(body->data, body->data + at, body->len - at);
    body->len -= at;
    return ok;
}

static int show_answer(FILE *f, bool stats)
{
    struct buf body = {0};
    bool chunked, ok = true, dim = false;
    int code = read_head(f, &chunked);

    while (read_part(f, chunked, &body))
        if (code == 200)
            ok &= show_lines(&body, stats, &dim);
    if (dim && isatty(STDOUT_FILENO))
        fputs("\033[0m", stdout);
    printf("\n");
    if (code != 200)
        fprintf(stderr, "baton chat: HTTP %d: %.*s\n", code, (int)body.len, body.data);
    buf_deinit(&body);
    return ok && code == 200 ? 0 : 1;
}

static void build_body(const struct chat_options *o, const char *prompt, struct buf *out)
{
    buf_puts(out, "{\"model\":");
    json_write_string(out, o->model, strlen(o->model));
    buf_puts(out, ",\"messages\":[{\"role\":\"user\",\"content\":");
    json_write_string(out, prompt, strlen(prompt));
    buf_printf(out,
               "}],\"stream\":true,\"stream_options\":{\"include_usage\":true},\"max_tokens\":%lld",
               (long long)o->max_tokens);
    buf_printf(out, ",\"temperature\":%g}", o->temperature);
}

static int check_ready(const struct chat_options *o)
{
    struct buf none = {0};
    struct status st;
    bool chunked;
    FILE *f;
    int code;

    if (request(o, "GET", "/ready", &none, &f, &st) != ST_OK)
        return 1;
    code = read_head(f, &chunked);
    fclose(f);
    return code == 200 ? 0 : 1;
}

int cmd_chat(int argc, char **argv)
{
    struct chat_options o = {
        .url = "http://127.0.0.1:8000", .model = "default", .max_tokens = 256, .temperature = 1};
    const struct flag flags[] = {
        {"url", FLAG_STRING, &o.url, .arg = "http://HOST:PORT", .help = "the router"},
        {"model", FLAG_STRING, &o.model, .arg = "NAME", .help = "model name in the request"},
        {"api-key", FLAG_STRING, &o.api_key, .arg = "KEY", .help = "sent as bearer token"},
        {"max-tokens", FLAG_INT, &o.max_tokens, 1, 1 << 20, .arg = "N",
         .help = "length of the answer"},
        {"temperature", FLAG_FLOAT, &o.temperature, 0, 2, .arg = "T", .help = "0: greedy"},
        {"stats", FLAG_BOOL, &o.stats, .help = "show the way the request took and its times"},
        {"check-ready", FLAG_BOOL, &o.check_ready,
         .help = "only say by exit status if /ready is 200"},
        {0},
    };
    const char *prompt = "";
    size_t n = 1;
    struct buf body = {0};
    struct status st;
    FILE *f;
    int rc;

    if (flags_parse(flags, argc, argv, &n, &prompt, &st) == ST_CANCELLED) {
        flags_help(flags, "usage: baton chat [flags] PROMPT\n");
        return 0;
    }
    if (st.code == ST_OK && o.check_ready)
        return check_ready(&o);
    if (st.code == ST_OK && n == 0)
        status_set(&st, ST_INVALID, "a prompt is needed");
    if (st.code == ST_OK) {
        build_body(&o, prompt, &body);
        request(&o, "POST", "/v1/chat/completions", &body, &f, &st);
        buf_deinit(&body);
    }
    if (st.code != ST_OK) {
        fprintf(stderr, "baton chat: %s\n", st.msg);
        return 2;
    }
    rc = show_answer(f, o.stats);
    fclose(f);
    return rc;
}
