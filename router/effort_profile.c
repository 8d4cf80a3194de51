#include "router/effort_profile.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/base/buf.h"

enum { WHY_BYTES = 256, FILE_BYTES_MAX = 4 << 20 };

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

static bool read_file(const char *path, struct buf *out)
{
    FILE *f = fopen(path, "r");
    char part[8192];
    size_t n;

    if (f == NULL)
        return false;
    while (out->len < FILE_BYTES_MAX && (n = fread(part, 1, sizeof(part), f)) > 0)
        buf_append(out, part, n);
    fclose(f);
    return true;
}

/* Whether a line of the text begins with "name" and then '=' or ':' (an annotated assignment). */
static bool assigns(const char *text, const char *name)
{
    size_t n = strlen(name);

    for (const char *p = text; (p = strstr(p, name)) != NULL; p += n) {
        const char *q = p + n + strspn(p + n, " \t");

        if ((p == text || p[-1] == '\n') && (*q == ':' || (*q == '=' && q[1] != '=')))
            return true;
    }
    return false;
}

/* Another encoder in the folder means another format: encoding_dsv41.py, say. */
static enum status_code refuse_others(const char *folder, struct status *st)
{
    DIR *d = opendir(folder);

    status_ok(st);
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;)
        if (strncmp(e->d_name, "encoding_dsv", 12) == 0 && strstr(e->d_name, ".py") != NULL &&
            strcmp(e->d_name, "encoding_dsv4.py") != 0)
            status_set(st, ST_INVALID,
                       "%s/%s: a prompt format other than V4's; this router writes V4 prompts only "
                       "(--effort-profile preview or ga overrules)",
                       folder, e->d_name);
    if (d != NULL)
        closedir(d);
    return st->code;
}

enum status_code effort_profile_find(const char *choice, const char *path, enum chat_profile *out,
                                     char *why, struct status *st)
{
    struct buf folder = {0}, text = {0};

    if (strcmp(choice, "auto") != 0) {
        *out = strcmp(choice, "preview") == 0 ? CHAT_PREVIEW : CHAT_GA;
        snprintf(why, WHY_BYTES, "--effort-profile %s", choice);
        return status_ok(st);
    }
    folder_of(path, &folder);
    buf_puts(&folder, "/encoding");
    if (refuse_others(buf_cstr(&folder), st) != ST_OK)
        goto done;
    buf_puts(&folder, "/encoding_dsv4.py");
    *out = CHAT_GA;
    if (!read_file(buf_cstr(&folder), &text)) {
        snprintf(why, WHY_BYTES, "no encoding/encoding_dsv4.py beside the tokenizer: ga");
    } else if (assigns(buf_cstr(&text), "REASONING_EFFORT_PROMPTS") &&
               assigns(buf_cstr(&text), "DEFAULT_REASONING_EFFORT")) {
        snprintf(why, WHY_BYTES, "encoding/encoding_dsv4.py: ga");
    } else if (assigns(buf_cstr(&text), "REASONING_EFFORT_MAX")) {
        *out = CHAT_PREVIEW;
        snprintf(why, WHY_BYTES, "encoding/encoding_dsv4.py: preview");
    } else {
        status_set(st, ST_INVALID,
                   "%s assigns neither REASONING_EFFORT_PROMPTS nor REASONING_EFFORT_MAX: say "
                   "--effort-profile preview or ga",
                   folder.data);
    }
done:
    buf_deinit(&folder);
    buf_deinit(&text);
    return st->code;
}
