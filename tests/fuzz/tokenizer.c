/* Fuzzes the tokenizer with any text: invalid UTF-8 is refused at its byte; else the word cache
 * changes nothing, pieces are PCRE2's and each one's ids the heap's, added tokens are where a plain
 * search finds them, and the ids decode to the text. BATON_FUZZ_TOKENIZER names a tokenizer.json to
 * use in place of the toy. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/utf8.h"
#include "common/text/pretokenize.h"
#include "common/text/tokenizer_impl.h"
#include "tests/lib/toy_tokenizer.h"
#ifdef HAVE_PCRE2
#include "tests/lib/pcre2_split.h"
#endif

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct tokenizer *t;
static struct tokenizer_cache *cache; /* small, so that words push each other out */
static uint8_t pass_of[BPE_MAX_TOKENS];

static void open_toy(struct status *st)
{
    char path[] = "/tmp/baton-fuzz-XXXXXX";
    int fd = mkstemp(path);
    struct buf b = {0};
    char cached[64];

    toy_tokenizer_json(&b, &(struct toy_tokenizer){.version = NULL});
    if (fd < 0 || write(fd, b.data, b.len) != (ssize_t)b.len ||
        tokenizer_open(path, &t, st) != ST_OK)
        abort();
    close(fd);
    unlink(path);
    snprintf(cached, sizeof(cached), "%s.baton", path);
    unlink(cached);
    buf_deinit(&b);
}

static void start(void)
{
    const char *path = getenv("BATON_FUZZ_TOKENIZER");
    struct status st;

    if (path == NULL)
        open_toy(&st);
    else if (tokenizer_open(path, &t, &st) != ST_OK)
        abort();
    if (tokenizer_cache_new(1, &cache, &st) != ST_OK)
        abort();
    for (uint32_t id = 0; id < t->bpe.n_tokens; id++) {
        size_t len, found;
        const char *s = tokenizer_bytes(t, (int32_t)id, &len, NULL);
        bool first = trie_longest(&t->passes[0].trie, (const uint8_t *)s, len, &found) == id;
        if (t->flags[id] & TOKEN_ADDED)
            pass_of[id] = first && found == len ? 1 : 2;
    }
}

static void encode_plainly(const uint8_t *s, size_t n, struct token_list *out)
{
    size_t *ends = malloc((n + 1) * sizeof(*ends)), n_ends = 0, from = 0;
    uint32_t *ids = malloc((n + 1) * sizeof(*ids));
    struct bpe_scratch scratch = {0};
    struct status st;

#ifdef HAVE_PCRE2
    static struct pcre2_split *split;
    if (split == NULL)
        split = pcre2_split_new();
    n_ends = pcre2_split_ends(split, (const char *)s, n, ends);
#else
    for (size_t pos = 0; pos < n; pos = ends[n_ends - 1])
        ends[n_ends++] = pretokenize_next(s, n, pos);
#endif
    for (size_t i = 0; i < n_ends; from = ends[i++]) {
        size_t k;
        if (bpe_encode_by_merging(&t->bpe, &scratch, s + from, ends[i] - from, ids, &k, &st) !=
            ST_OK)
            abort();
        for (size_t j = 0; j < k; j++)
            token_list_push(out, (int32_t)ids[j]);
    }
    bpe_scratch_deinit(&scratch);
    free(ends);
    free(ids);
}

/* Added tokens of this pass by trying all of them everywhere. */
static void encode_pass(const uint8_t *s, size_t n, int pass, struct token_list *out)
{
    size_t done = 0;

    if (pass == 3) {
        encode_plainly(s, n, out);
        return;
    }
    for (size_t pos = 0; pos < n;) {
        size_t best_len = 0;
        int32_t best = -1;
        for (uint32_t id = 0; id < t->bpe.n_tokens; id++) {
            size_t len;
            const char *text;
            if (pass_of[id] != pass)
                continue;
            text = tokenizer_bytes(t, (int32_t)id, &len, NULL);
            if (len > best_len && len <= n - pos && memcmp(text, s + pos, len) == 0) {
                best_len = len;
                best = (int32_t)id;
            }
        }
        if (best < 0) {
            pos++;
            continue;
        }
        encode_pass(s + done, pos - done, pass + 1, out);
        token_list_push(out, best);
        done = pos += best_len;
    }
    encode_pass(s + done, n - done, pass + 1, out);
}

static void check_decoded(const struct token_list *ids, const uint8_t *s, size_t n)
{
    struct detokenizer d = {.n_held = 0};
    struct buf out = {0};
    struct status st;

    for (size_t i = 0; i < ids->n; i++)
        if (detokenizer_push(&d, t, ids->ids[i], &out, &st) != ST_OK)
            abort();
    detokenizer_finish(&d, &out);
    if (out.len != n || (n > 0 && memcmp(out.data, s, n) != 0))
        abort();
    buf_deinit(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct token_list found = {0}, cached = {0}, expected = {0};
    struct status st;
    size_t valid;
    char *text, where[32];

    if (t == NULL)
        start();
    if (size > 4096)
        return 0;                   /* the plain search is slow */
    text = malloc(size ? size : 1); /* exactly as long as said */
    memcpy(text, data, size);
    valid = utf8_valid_prefix(text, size);
    for (unsigned flags = 0; flags <= TOKENIZE_ADDED; flags++) {
        found.n = cached.n = expected.n = 0;
        if (tokenizer_encode(t, NULL, text, size, flags, &found, &st) != ST_OK) {
            snprintf(where, sizeof(where), "offset %zu", valid);
            if (st.code != ST_INVALID || valid == size || strstr(st.msg, where) == NULL)
                abort();
            break;
        }
        if (valid < size || tokenizer_encode(t, cache, text, size, flags, &cached, &st) != ST_OK)
            abort();
        encode_pass((const uint8_t *)text, size, flags ? 1 : 3, &expected);
        if (found.n != expected.n || cached.n != found.n ||
            (found.n > 0 && (memcmp(found.ids, expected.ids, found.n * sizeof(int32_t)) != 0 ||
                             memcmp(found.ids, cached.ids, found.n * sizeof(int32_t)) != 0)))
            abort();
        check_decoded(&found, (const uint8_t *)text, size);
    }
    token_list_deinit(&found);
    token_list_deinit(&cached);
    token_list_deinit(&expected);
    free(text);
    return 0;
}
