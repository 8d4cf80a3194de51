#include "common/text/tokenizer_impl.h"

#include "common/text/unicode.h"

/* A table of an image; NULL when its size is not that of n items. */
static const void *table(const struct image *image, enum image_section which, size_t item, size_t n)
{
    return image->sections[which].bytes == item * n ? image->sections[which].data : NULL;
}

static bool bind_trie(const struct image *image, enum image_section which, uint32_t n_values,
                      struct trie *out)
{
    out->n = image->sections[which].bytes / (2 * sizeof(*out->slots));
    out->slots = table(image, which, 2 * sizeof(*out->slots), out->n);
    return out->slots != NULL && (image->mapping == NULL || trie_is_sound(out, n_values));
}

static void note_starts(struct added_pass *p)
{
    for (int c = 255; c >= 0; c--) {
        uint8_t byte = (uint8_t)c;
        if (trie_first(&p->trie, byte) == 0)
            continue;
        p->starts[c] = true;
        if (p->n_starts++ == 0)
            p->first[1] = byte;
        p->first[0] = byte;
    }
}

/* Asked of a file; what was built here is as bpe_build() makes it. */
static bool ids_are_sound(const struct bpe *b)
{
    size_t n_free = 0;

    for (uint32_t i = 0; i < b->n_tokens; i++) {
        const struct bpe_token *t = &b->tokens[i];
        if (b->offsets[i] >= b->offsets[i + 1] || t->made > b->n_merges)
            return false;
        if (t->made > 0 &&
            (t->left >= b->n_tokens || t->right >= b->n_tokens ||
             b->tokens[t->left].made >= t->made || b->tokens[t->right].made >= t->made))
            return false;
        uint32_t prefix = b->prefixes[i];
        if (prefix != BPE_NONE &&
            (prefix >= b->n_tokens ||
             b->offsets[prefix + 1] - b->offsets[prefix] >= b->offsets[i + 1] - b->offsets[i]))
            return false;
    }
    for (uint32_t i = 0; i < 256; i++)
        if (b->byte_ids[i] >= b->n_tokens)
            return false;
    for (uint32_t i = 0; i < b->n_merges; i++)
        if (b->merged[i] >= b->n_tokens)
            return false;
    for (uint64_t i = 0; i <= b->pairs_mask; i++) {
        if (b->pairs[i] == BPE_PAIR_FREE)
            n_free++;
        else if ((b->pairs[i] & 0xFFFFFF) >= b->n_merges)
            return false;
    }
    return n_free > 0;
}

static bool bind_bpe(struct tokenizer *t)
{
    const struct image *image = &t->image;
    uint32_t n = t->meta->n_tokens, n_merges = t->meta->n_merges;
    size_t n_pairs = image->sections[IMAGE_PAIRS].bytes / sizeof(uint64_t);
    size_t n_filter = image->sections[IMAGE_FILTER].bytes / sizeof(uint64_t);
    struct bpe *b = &t->bpe;

    if (n == 0 || n > BPE_MAX_TOKENS || n_merges > BPE_MAX_MERGES || n_pairs < 2 ||
        (n_pairs & (n_pairs - 1)) != 0 || n_filter < 2 || (n_filter & (n_filter - 1)) != 0)
        return false;
    *b = (struct bpe){
        .n_tokens = n,
        .n_merges = n_merges,
        .linear = t->meta->linear != 0,
        .offsets = table(image, IMAGE_OFFSETS, sizeof(uint32_t), (size_t)n + 1),
        .bytes = image->sections[IMAGE_BYTES].data,
        .byte_ids = table(image, IMAGE_BYTE_IDS, sizeof(uint32_t), 256),
        .tokens = table(image, IMAGE_TOKENS, sizeof(struct bpe_token), n),
        .prefixes = table(image, IMAGE_PREFIXES, sizeof(uint32_t), n),
        .merged = table(image, IMAGE_MERGED, sizeof(uint32_t), n_merges),
        .pairs = table(image, IMAGE_PAIRS, sizeof(uint64_t), n_pairs),
        .pairs_mask = n_pairs - 1,
        .pairs_shift = 64 - (unsigned)__builtin_ctzll(n_pairs),
        .filter = table(image, IMAGE_FILTER, sizeof(uint64_t), n_filter),
        .filter_shift = 64 - (unsigned)__builtin_ctzll(n_filter),
    };
    if (b->offsets == NULL || b->byte_ids == NULL || b->tokens == NULL || b->prefixes == NULL ||
        b->merged == NULL || b->pairs == NULL || b->filter == NULL ||
        b->offsets[n] != image->sections[IMAGE_BYTES].bytes)
        return false;
    return (image->mapping == NULL || ids_are_sound(b)) &&
           (!b->linear || bind_trie(image, IMAGE_TRIE, n, &b->trie));
}

enum status_code tokenizer_bind(struct tokenizer *t, struct status *st)
{
    t->meta = table(&t->image, IMAGE_META, sizeof(*t->meta), 1);
    if (t->meta == NULL || !bind_bpe(t))
        return status_set(st, ST_CORRUPT, "the tables do not fit together");
    t->flags = table(&t->image, IMAGE_FLAGS, 1, t->bpe.n_tokens);
    for (int i = 0; i < 2; i++) {
        if (!bind_trie(&t->image, i == 0 ? IMAGE_ADDED_FIRST : IMAGE_ADDED_SECOND, t->bpe.n_tokens,
                       &t->passes[i].trie))
            return status_set(st, ST_CORRUPT, "the added tokens' tables do not fit");
        note_starts(&t->passes[i]);
    }
    if (t->flags == NULL)
        return status_set(st, ST_CORRUPT, "the tables do not fit together");
    return status_ok(st);
}
