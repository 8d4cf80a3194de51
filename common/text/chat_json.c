#include "common/text/chat_json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    DIGITS_ALWAYS = 15, /* a decimal of so many digits survives the way through a normal double */
    DIGITS_MAX = 17,    /* so many always read back as the same double */
    EXP_FIXED_MIN = -4, /* decimal exponents in [MIN, MAX) are written without exponent */
    EXP_FIXED_MAX = 16,
};

/* The digits of |d| (finite, not zero) correctly rounded to n, and its decimal exponent. */
static void round_to(double d, int n, char digits[DIGITS_MAX], int *exp10)
{
    char text[40]; /* d.ddde+XXX; no point when n is 1 */

    snprintf(text, sizeof(text), "%.*e", n - 1, fabs(d));
    digits[0] = text[0];
    memcpy(digits + 1, text + 2, (size_t)n - 1);
    *exp10 = atoi(strchr(text, 'e') + 1);
}

/* The next decimal of n digits above. */
static void next_up(char digits[DIGITS_MAX], int n, int *exp10)
{
    while (n > 0 && digits[n - 1] == '9')
        digits[--n] = '0';
    if (n > 0) {
        digits[n - 1]++;
    } else {
        digits[0] = '1';
        ++*exp10;
    }
}

static bool reads_back(double d, const char *digits, int n, int exp10)
{
    char text[48];

    snprintf(text, sizeof(text), "%.*se%d", n, digits, exp10 - n + 1);
    return strtod(text, NULL) == fabs(d);
}

/* The fewest digits that read back as |d|, the nearest to it among those; returns how many. */
static int shortest_digits(double d, char digits[DIGITS_MAX], int *exp10)
{
    /* Below the normal range a double has fewer digits: look from one up. */
    int n = fabs(d) < 1e-290 ? 1 : DIGITS_ALWAYS;

    for (; n < DIGITS_MAX; n++) {
        round_to(d, n, digits, exp10);
        if (reads_back(d, digits, n, *exp10))
            break;
        /* Above a power of two the doubles lie twice as far apart as below: the nearest n-digit
         * decimal may read back as the double below while the next one up reads back as d. */
        next_up(digits, n, exp10);
        if (reads_back(d, digits, n, *exp10))
            break;
    }
    if (n == DIGITS_MAX)
        round_to(d, n, digits, exp10);
    while (n > 1 && digits[n - 1] == '0')
        n--;
    return n;
}

void chat_json_write_double(struct buf *out, double d)
{
    char digits[DIGITS_MAX];
    int len, exp10;

    if (isnan(d)) {
        buf_puts(out, "NaN");
        return;
    }
    if (signbit(d))
        buf_puts(out, "-");
    if (isinf(d) || d == 0) {
        buf_puts(out, d == 0 ? "0.0" : "Infinity");
        return;
    }
    len = shortest_digits(d, digits, &exp10);
    if (exp10 < EXP_FIXED_MIN || exp10 >= EXP_FIXED_MAX) {
        buf_append(out, digits, 1);
        if (len > 1) {
            buf_puts(out, ".");
            buf_append(out, digits + 1, (size_t)len - 1);
        }
        buf_printf(out, "e%c%02d", exp10 < 0 ? '-' : '+', abs(exp10));
    } else if (exp10 < 0) {
        buf_puts(out, "0.");
        for (int i = -1; i > exp10; i--)
            buf_puts(out, "0");
        buf_append(out, digits, (size_t)len);
    } else {
        for (int i = 0; i <= exp10; i++)
            buf_append(out, i < len ? digits + i : "0", 1);
        buf_puts(out, ".");
        if (len > exp10 + 1)
            buf_append(out, digits + exp10 + 1, (size_t)(len - exp10 - 1));
        else
            buf_puts(out, "0");
    }
}

static void write_number(struct buf *out, const struct json *v)
{
    double d;

    /* NaN, Infinity and integers are spelled as they came; an 'E' or 'e' stands in no other. */
    if (strpbrk(v->text, ".eE") == NULL) {
        bool minus_zero = v->len == 2 && memcmp(v->text, "-0", 2) == 0;

        buf_append(out, v->text + minus_zero, v->len - minus_zero);
        return;
    }
    json_double(v, &d);
    chat_json_write_double(out, d);
}

void chat_json_write(struct buf *out, const struct json *v)
{
    static const struct json_style python = {", ", ": ", write_number};

    json_write(out, v, &python);
}
