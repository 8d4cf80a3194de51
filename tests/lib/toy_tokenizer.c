#include "tests/lib/toy_tokenizer.h"

#include "common/base/json.h"
#include "common/text/pretokenize.h"

static void put_byte_char(struct buf *b, int byte)
{
    int next = 0x100;

    for (int c = 0; c <= byte; c++) {
        bool printable = (c >= 0x21 && c <= 0x7E) || (c >= 0xA1 && c <= 0xAC) || c >= 0xAE;
        int cp = printable ? c : next++;
        if (c < byte)
            continue;
        if (cp == '"' || cp == '\\')
            buf_printf(b, "\\%c", cp);
        else if (cp < 0x80)
            buf_printf(b, "%c", cp);
        else
            buf_printf(b, "%c%c", 0xC0 | cp >> 6, 0x80 | (cp & 0x3F));
    }
}

#define OR(value, usual) ((value) != NULL ? (value) : (usual))

static void put_pre_tokenizer(struct buf *b, const struct toy_tokenizer *t)
{
    buf_puts(b, "{\"type\": \"Sequence\", \"pretokenizers\": [");
    for (int i = 0; i < 3; i++) {
        buf_puts(b, "{\"type\": \"Split\", \"pattern\": {\"Regex\": ");
        json_write_string(b, pretokenize_patterns[i], strlen(pretokenize_patterns[i]));
        buf_printf(b, "}, %s}, ", OR(t->split, "\"behavior\": \"Isolated\", \"invert\": false"));
    }
    buf_puts(b, "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, "
                "\"use_regex\": false}]}");
}

static void put_vocab_and_merges(struct buf *b, const struct toy_tokenizer *t)
{
    const char *merges =
        OR(t->merges, "[\"a b\", [\"ab\", \"c\"], \"\xC4\xA0 t\", \"\xC4\xA0t h\", "
                      "\"\\\" \\\"\"]");

    if (t->merges_first)
        buf_printf(b, "\"merges\": %s, ", merges);
    buf_puts(b, "\"vocab\": {");
    for (int c = 0; c < 256; c++) {
        buf_puts(b, "\"");
        put_byte_char(b, c);
        buf_printf(b, "\": %d, ", c);
    }
    buf_printf(b, "%s}",
               OR(t->vocab_tail,
                  "\"ab\": 256, \"abc\": 257, \"\\u0120t\": 258, \"\xC4\xA0th\": 259, "
                  "\"\\\"\\\"\": 260, \"<s>\": 261"));
    if (!t->merges_first)
        buf_printf(b, ", \"merges\": %s", merges);
}

void toy_tokenizer_json(struct buf *b, const struct toy_tokenizer *t)
{
    b->len = 0;
    buf_printf(
        b, "{\"version\": %s, \"truncation\": %s, \"padding\": %s, \"added_tokens\": %s, ",
        OR(t->version, "\"1.0\""), OR(t->truncation, "null"), OR(t->padding, "null"),
        OR(t->added,
           "[" TOY_ADDED(261, "<s>", false, true) ", " TOY_ADDED(
               262, "<ab", true,
               false) ", " TOY_ADDED(263, "<abc>", true,
                                     false) ", " TOY_ADDED(264, "b<s", true,
                                                           false) ", " TOY_ADDED(265, "<s><s>",
                                                                                 false,
                                                                                 false) "]"));
    buf_printf(b, "\"normalizer\": %s, \"pre_tokenizer\": ",
               OR(t->normalizer, "{\"type\": \"Sequence\", \"normalizers\": []}"));
    if (t->pre_tokenizer != NULL)
        buf_puts(b, t->pre_tokenizer);
    else
        put_pre_tokenizer(b, t);
    buf_printf(b, ", \"post_processor\": %s, \"decoder\": %s, %s\"model\": {%s, ",
               OR(t->post_processor, "{\"type\": \"ByteLevel\"}"),
               OR(t->decoder, "{\"type\": \"ByteLevel\"}"), OR(t->more, ""),
               OR(t->model, "\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null, "
                            "\"fuse_unk\": false, \"byte_fallback\": false"));
    put_vocab_and_merges(b, t);
    buf_puts(b, "}}");
}
