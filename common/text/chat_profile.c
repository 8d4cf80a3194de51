#include "common/text/chat_profile.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/base/json.h"

/* Encoders and configurations are a few kB; what is larger is something else. */
enum { FILE_BYTES_MAX = 1 << 22 };

const char *chat_profile_name(enum chat_profile profile)
{
    return profile == CHAT_GA ? "ga" : "preview";
}

/* The file's contents; *exists is false (and the status ok) when there is none. */
static enum status_code read_file(const char *dir, const char *name, struct buf *out, bool *exists,
                                  struct status *st)
{
    struct buf path = {0};
    FILE *f;
    size_t n;

    buf_printf(&path, "%s/%s", dir, name);
    f = fopen(buf_cstr(&path), "rb");
    *exists = f != NULL;
    if (f == NULL && (errno == ENOENT || errno == ENOTDIR)) {
        status_ok(st);
        goto done;
    }
    if (f == NULL) {
        status_set(st, ST_UNAVAILABLE, "cannot open %s: %s", buf_cstr(&path), strerror(errno));
        goto done;
    }
    buf_reserve(out, FILE_BYTES_MAX);
    n = fread(out->data, 1, FILE_BYTES_MAX, f);
    out->len = n;
    if (ferror(f))
        status_set(st, ST_UNAVAILABLE, "cannot read %s: %s", buf_cstr(&path), strerror(errno));
    else if (n == FILE_BYTES_MAX)
        status_set(st, ST_INVALID, "%s is larger than %d bytes", buf_cstr(&path), FILE_BYTES_MAX);
    else
        status_ok(st);
done:
    if (f != NULL)
        fclose(f);
    buf_deinit(&path);
    return st->code;
}

/* Does a line of the Python text begin with `name =` or `name: type =`? */
static bool assigns(const char *text, const char *name)
{
    size_t n = strlen(name);

    for (const char *line = text; line != NULL; line = strchr(line, '\n')) {
        const char *p;

        line += *line == '\n';
        if (strncmp(line, name, n) != 0)
            continue;
        p = line + n;
        if (*p == ':')
            p += strcspn(p, "=\n");
        p += strspn(p, " \t");
        if (p[0] == '=' && p[1] != '=')
            return true;
    }
    return false;
}

static bool string_says_v41(const struct json *v)
{
    return v != NULL && v->type == JSON_STRING &&
           (strcasestr(v->text, "v4_1") != NULL || strcasestr(v->text, "v4.1") != NULL ||
            strcasestr(v->text, "v41") != NULL);
}

static bool config_says_v41(const struct json *config)
{
    const struct json *architectures = json_get(config, "architectures");

    if (architectures != NULL && architectures->type == JSON_ARRAY)
        for (uint32_t i = 0; i < architectures->len; i++)
            if (string_says_v41(&architectures->items[i]))
                return true;
    return string_says_v41(json_get(config, "model_type"));
}

static enum status_code refuse_v41(const char *dir, const char *why, struct status *st)
{
    return status_set(st, ST_INVALID,
                      "%s is a DeepSeek-V4.1 checkpoint (%s): its prompt format is another one and "
                      "is not served; use a V4 checkpoint",
                      dir, why);
}

static enum status_code check_config(const char *dir, struct status *st)
{
    struct buf text = {0};
    struct json_doc *doc = NULL;
    bool exists;

    if (read_file(dir, "config.json", &text, &exists, st) != ST_OK || !exists)
        goto done;
    /* A broken config.json is the model's to report, with all its keys in view. */
    if (json_parse(text.data, text.len, JSON_LAST_KEY_WINS, &doc, st) != ST_OK)
        status_ok(st);
    else if (config_says_v41(json_root(doc)))
        refuse_v41(dir, "config.json says so", st);
done:
    json_free(doc);
    buf_deinit(&text);
    return st->code;
}

/* Another encoder in the folder means another format: encoding_dsv41.py, say. */
static enum status_code check_other_encoders(const char *dir, struct status *st)
{
    struct buf path = {0};
    DIR *d;

    buf_printf(&path, "%s/encoding", dir);
    d = opendir(buf_cstr(&path));
    status_ok(st);
    for (struct dirent *e; d != NULL && st->code == ST_OK && (e = readdir(d)) != NULL;) {
        size_t n = strlen(e->d_name);

        if (strncmp(e->d_name, "encoding_dsv", 12) != 0 || strcmp(e->d_name + n - 3, ".py") != 0 ||
            strcmp(e->d_name, "encoding_dsv4.py") == 0)
            continue;
        if (strncmp(e->d_name, "encoding_dsv4", 13) == 0)
            refuse_v41(dir, e->d_name, st);
        else
            status_set(st, ST_INVALID,
                       "%s/encoding/%s: a prompt format other than DeepSeek-V4's, which alone is "
                       "served (--effort-profile preview or ga overrules)",
                       dir, e->d_name);
    }
    if (d != NULL)
        closedir(d);
    buf_deinit(&path);
    return st->code;
}

static enum status_code classify(const char *dir, const char *text, enum chat_profile *profile,
                                 struct status *st)
{
    if (strstr(text, "｜DSML｜ invoke") != NULL || strstr(text, "dsml_token} invoke") != NULL)
        return refuse_v41(dir, "its tags are spelled so in encoding/encoding_dsv4.py", st);
    if (assigns(text, "REASONING_EFFORT_PROMPTS") && assigns(text, "DEFAULT_REASONING_EFFORT"))
        *profile = CHAT_GA;
    else if (assigns(text, "REASONING_EFFORT_MAX"))
        *profile = CHAT_PREVIEW;
    else
        return status_set(st, ST_INVALID,
                          "%s/encoding/encoding_dsv4.py assigns neither REASONING_EFFORT_PROMPTS "
                          "and DEFAULT_REASONING_EFFORT (profile ga) nor REASONING_EFFORT_MAX "
                          "(profile preview): say --effort-profile",
                          dir);
    return status_ok(st);
}

/* The folder of a path that may name the tokenizer.json in it. */
static void folder_of(const char *path, struct buf *out)
{
    const char *slash = strrchr(path, '/');
    struct stat sb;

    if (stat(path, &sb) == 0 && S_ISDIR(sb.st_mode))
        buf_puts(out, path);
    else if (slash == NULL)
        buf_puts(out, ".");
    else
        buf_append(out, path, (size_t)(slash - path) + (slash == path));
}

static enum status_code detect(const char *dir, enum chat_profile *out, const char **why,
                               struct status *st)
{
    enum chat_profile profile = CHAT_GA;
    struct buf text = {0};
    bool exists = false;

    if (check_config(dir, st) == ST_OK && check_other_encoders(dir, st) == ST_OK &&
        read_file(dir, "encoding/encoding_dsv4.py", &text, &exists, st) == ST_OK && exists)
        classify(dir, buf_cstr(&text), &profile, st);
    if (st->code == ST_OK) {
        *out = profile;
        *why = exists ? "encoding/encoding_dsv4.py says so"
                      : "the checkpoint has no encoding/encoding_dsv4.py to look at";
    }
    buf_deinit(&text);
    return st->code;
}

enum status_code chat_profile_find(const char *choice, const char *path, enum chat_profile *out,
                                   const char **why, struct status *st)
{
    struct buf dir = {0};

    if (strcmp(choice, "auto") != 0) {
        *out = strcmp(choice, "preview") == 0 ? CHAT_PREVIEW : CHAT_GA;
        *why = "--effort-profile says so";
        return status_ok(st);
    }
    folder_of(path, &dir);
    detect(buf_cstr(&dir), out, why, st);
    buf_deinit(&dir);
    return st->code;
}
