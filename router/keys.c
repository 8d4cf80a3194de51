#include "router/keys.h"

#include <ctype.h>
#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/file.h"
#include "common/base/log.h"

enum { LINE_MAX_BYTES = 1024, REFRESH_US = 500000, SECRET_MIN = 8 };

struct bucket {
    double rate; /* per second; 0: no limit */
    double room; /* at most */
    double left; /* may be negative: a debt */
};

struct key {
    uint8_t hash[SHA256_DIGEST_LENGTH];
    uint32_t id;
    bool admin;
    float weight;
    int priority;
    char name[KEY_NAME_MAX + 1];
    struct bucket requests, tokens;
    uint64_t filled_us; /* both buckets */
};

struct keys {
    EVP_MD *sha256;       /* looking it up takes longer than hashing a key */
    pthread_mutex_t lock; /* guards all below */
    char *file;
    struct file_stamp stamp;
    bool complained;
    uint64_t looked_us;
    uint32_t next_id;
    struct key *list; /* [n], ascending by hash */
    size_t n, n_fixed;
    uint32_t *places;    /* [next_id + 1]: of a key's id in the list; those that are gone: n */
    struct key fixed[2]; /* of the command line */
};

static int by_hash(const void *a, const void *b)
{
    return memcmp(((const struct key *)a)->hash, ((const struct key *)b)->hash,
                  SHA256_DIGEST_LENGTH);
}

static void name_by_hash(struct key *k)
{
    for (int i = 0; i < 4; i++)
        snprintf(k->name + 2 * i, 3, "%02x", k->hash[i]);
}

/* ---- reading --------------------------------------------------------------------------------- */

static bool read_hex(const char *s, uint8_t *out)
{
    unsigned v;

    if (strlen(s) != 2 * SHA256_DIGEST_LENGTH)
        return false;
    for (int i = 0; i < SHA256_DIGEST_LENGTH; i++) {
        if (!isxdigit((unsigned char)s[2 * i]) || !isxdigit((unsigned char)s[2 * i + 1]) ||
            sscanf(s + 2 * i, "%2x", &v) != 1)
            return false;
        out[i] = (uint8_t)v;
    }
    return true;
}

static enum status_code read_secret(const char *word, struct key *k, struct status *st)
{
    if (strncmp(word, "sha256:", 7) == 0) {
        if (!read_hex(word + 7, k->hash))
            return status_set(st, ST_INVALID, "sha256: wants 64 hexadecimal digits");
    } else if (strlen(word) < SECRET_MIN) {
        return status_set(st, ST_INVALID, "a key has at least %d characters", SECRET_MIN);
    } else {
        SHA256((const unsigned char *)word, strlen(word), k->hash);
    }
    name_by_hash(k);
    return status_ok(st);
}

static bool read_number(const char *s, double min, double max, double *out)
{
    char *end;

    *out = strtod(s, &end);
    return end != s && *end == '\0' && *out >= min && *out <= max;
}

static bool good_name(const char *s)
{
    for (const char *c = s; *c != '\0'; c++)
        if (!isalnum((unsigned char)*c) && strchr("_-.@", *c) == NULL)
            return false;
    return *s != '\0' && strlen(s) <= KEY_NAME_MAX;
}

static enum status_code read_word(const char *word, struct key *k, struct status *st)
{
    const char *value = strchr(word, '=');
    double v;

    if (strcmp(word, "admin") == 0) {
        k->admin = true;
        return status_ok(st);
    }
    if (value == NULL)
        return status_set(st, ST_INVALID,
                          "'%.40s' is not one of name=, rps=, burst=, tpm=, "
                          "weight=, priority=, admin",
                          word);
    value++;
    if (strncmp(word, "name=", 5) == 0 && good_name(value))
        snprintf(k->name, sizeof(k->name), "%s", value);
    else if (strncmp(word, "rps=", 4) == 0 && read_number(value, 1e-6, 1e9, &v))
        k->requests.rate = v;
    else if (strncmp(word, "burst=", 6) == 0 && read_number(value, 1, 1e9, &v))
        k->requests.room = v;
    else if (strncmp(word, "tpm=", 4) == 0 && read_number(value, 1, 1e15, &v))
        k->tokens = (struct bucket){v / 60, v, v};
    else if (strncmp(word, "weight=", 7) == 0 && read_number(value, 1e-3, 1e6, &v))
        k->weight = (float)v;
    else if (strncmp(word, "priority=", 9) == 0 && read_number(value, -1000, 1000, &v))
        k->priority = (int)v;
    else
        return status_set(st, ST_INVALID, "'%.60s' cannot be read, or is out of bounds", word);
    return status_ok(st);
}

/* @return ST_OK with *any false for a line without a key */
static enum status_code read_line(char *line, struct key *k, bool *any, struct status *st)
{
    char *save = NULL, *word;

    *k = (struct key){.weight = 1};
    line[strcspn(line, "#\r\n")] = '\0';
    word = strtok_r(line, " \t", &save);
    *any = word != NULL;
    status_ok(st);
    if (word != NULL)
        read_secret(word, k, st);
    while (st->code == ST_OK && (word = strtok_r(NULL, " \t", &save)) != NULL)
        read_word(word, k, st);
    if (k->requests.rate > 0 && k->requests.room == 0)
        k->requests.room = k->requests.rate > 1 ? k->requests.rate : 1;
    k->requests.left = k->requests.room;
    return st->code;
}

static enum status_code push(struct key **list, size_t *n, const struct key *k, struct status *st)
{
    struct key *more = realloc(*list, (*n + 1) * sizeof(*more));

    if (more == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for %zu keys", *n + 1);
    *list = more;
    more[(*n)++] = *k;
    return status_ok(st);
}

static enum status_code read_file(FILE *f, struct key **list, size_t *n, struct status *st)
{
    char line[LINE_MAX_BYTES];
    struct key k;
    bool any;

    for (int i = 1; fgets(line, sizeof(line), f) != NULL; i++) {
        if (strlen(line) + 1 == sizeof(line))
            return status_set(st, ST_INVALID, "line %d is too long", i);
        if (*n == KEYS_MAX)
            return status_set(st, ST_INVALID, "more than %d keys", KEYS_MAX);
        if (read_line(line, &k, &any, st) != ST_OK || (any && push(list, n, &k, st) != ST_OK))
            return status_wrap(st, "line %d", i);
    }
    OPENSSL_cleanse(line, sizeof(line));
    return status_ok(st);
}

/* A key that was there before keeps its number and what it has left. */
static void keep_accounts(struct keys *ks, struct key *k)
{
    const struct key *old = ks->n == 0 ? NULL : bsearch(k, ks->list, ks->n, sizeof(*k), by_hash);

    k->id = old != NULL ? old->id : ++ks->next_id;
    if (old == NULL)
        return;
    k->filled_us = old->filled_us;
    k->requests.left =
        old->requests.left < k->requests.room ? old->requests.left : k->requests.room;
    k->tokens.left = old->tokens.left < k->tokens.room ? old->tokens.left : k->tokens.room;
}

static enum status_code install(struct keys *ks, struct key *list, size_t n, struct status *st)
{
    uint32_t *places;

    for (size_t i = 0; i < ks->n_fixed; i++)
        if (push(&list, &n, &ks->fixed[i], st) != ST_OK) {
            free(list);
            return st->code;
        }
    for (size_t i = 0; i < n; i++)
        keep_accounts(ks, &list[i]);
    if (n > 0)
        qsort(list, n, sizeof(*list), by_hash);
    for (size_t i = 1; i < n; i++)
        if (by_hash(&list[i - 1], &list[i]) == 0) {
            status_set(st, ST_INVALID, "the key %s is there twice", list[i].name);
            free(list);
            return st->code;
        }
    places = realloc(ks->places, (ks->next_id + 1) * sizeof(*places));
    if (places == NULL) {
        free(list);
        return status_set(st, ST_EXHAUSTED, "no memory for %zu keys", n);
    }
    ks->places = places;
    for (uint32_t i = 0; i <= ks->next_id; i++)
        places[i] = (uint32_t)n;
    for (uint32_t i = 0; i < n; i++)
        places[list[i].id] = i;
    free(ks->list);
    ks->list = list;
    ks->n = n;
    return status_ok(st);
}

static enum status_code load(struct keys *ks, struct status *st)
{
    struct key *list = NULL;
    size_t n = 0;
    FILE *f;

    (void)file_stamp_take(ks->file, &ks->stamp);
    f = fopen(ks->file, "re");
    if (f == NULL)
        return status_set(st, ST_INVALID, "%s: %s", ks->file, strerror(errno));
    if (read_file(f, &list, &n, st) != ST_OK)
        free(list);
    else
        install(ks, list, n, st);
    fclose(f);
    return st->code == ST_OK ? ST_OK : status_wrap(st, "%s", ks->file);
}

/* ---- public ---------------------------------------------------------------------------------- */

static enum status_code add_fixed(struct keys *ks, const char *flag, const char *secret,
                                  const char *name, bool admin, struct status *st)
{
    struct key *k = &ks->fixed[ks->n_fixed];

    if (secret == NULL)
        return status_ok(st);
    *k = (struct key){.weight = 1, .admin = admin};
    if (read_secret(secret, k, st) != ST_OK)
        return status_wrap(st, "--%s", flag);
    snprintf(k->name, sizeof(k->name), "%s", name);
    ks->n_fixed++;
    return ST_OK;
}

enum status_code keys_new(const char *api_key, const char *admin_key, const char *file,
                          struct keys **out, struct status *st)
{
    struct keys *ks = calloc(1, sizeof(*ks));

    if (ks == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory for the keys");
    pthread_mutex_init(&ks->lock, NULL);
    ks->sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
    if (ks->sha256 == NULL)
        status_set(st, ST_INTERNAL, "this OpenSSL has no SHA-256");
    else if (add_fixed(ks, "api-key", api_key, "default", false, st) == ST_OK &&
             add_fixed(ks, "admin-api-key", admin_key, "admin", true, st) == ST_OK &&
             install(ks, NULL, 0, st) == ST_OK && file != NULL) {
        ks->file = strdup(file);
        if (ks->file == NULL)
            status_set(st, ST_EXHAUSTED, "no memory for the keys");
        else
            load(ks, st);
    }
    if (st->code != ST_OK) {
        keys_free(ks);
        return st->code;
    }
    *out = ks;
    return ST_OK;
}

void keys_free(struct keys *k)
{
    if (k == NULL)
        return;
    pthread_mutex_destroy(&k->lock);
    EVP_MD_free(k->sha256);
    free(k->file);
    free(k->list);
    free(k->places);
    free(k);
}

void keys_refresh(struct keys *k, uint64_t now_us)
{
    struct file_stamp now;
    struct status st;

    if (k->file == NULL)
        return;
    pthread_mutex_lock(&k->lock);
    if (now_us - k->looked_us >= REFRESH_US) {
        k->looked_us = now_us;
        if (!file_stamp_take(k->file, &now)) {
            if (!k->complained)
                log_error("%s: %s: the keys stay as they are", k->file, strerror(errno));
            k->complained = true;
        } else if (!file_stamp_same(&now, &k->stamp)) {
            k->complained = load(k, &st) != ST_OK;
            if (k->complained)
                log_error("%s: the keys stay as they are", st.msg);
            else
                log_info("%s: read again, %zu keys", k->file, k->n);
        }
    }
    pthread_mutex_unlock(&k->lock);
}

/* Every comparison looks at the whole hash, of which an attacker knows nothing. */
static struct key *find(const struct keys *ks, const uint8_t *hash)
{
    size_t lo = 0, hi = ks->n;

    while (lo < hi) { /* by the first bytes of a hash: they tell nothing of the key */
        size_t mid = lo + (hi - lo) / 2;

        if (memcmp(ks->list[mid].hash, hash, 8) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    for (; lo < ks->n && memcmp(ks->list[lo].hash, hash, 8) == 0; lo++)
        if (CRYPTO_memcmp(ks->list[lo].hash, hash, SHA256_DIGEST_LENGTH) == 0)
            return &ks->list[lo];
    return NULL;
}

enum key_verdict keys_check(struct keys *k, const char *given, size_t len, bool admin,
                            struct key_who *who)
{
    uint8_t hash[SHA256_DIGEST_LENGTH];
    enum key_verdict v = KEY_UNKNOWN;
    const struct key *found;

    *who = (struct key_who){.weight = 1, .name = "-"};
    if (k->n_fixed == 0 && k->file == NULL)
        return KEY_OK;
    if (given == NULL || len == 0)
        return KEY_MISSING;
    if (EVP_Digest(given, len, hash, NULL, k->sha256, NULL) != 1)
        return KEY_UNKNOWN;
    pthread_mutex_lock(&k->lock);
    found = find(k, hash);
    if (found != NULL) {
        who->id = found->id;
        who->weight = found->weight;
        who->priority = found->priority;
        memcpy(who->name, found->name, sizeof(who->name));
        v = admin && !found->admin ? KEY_NOT_ADMIN : KEY_OK;
    }
    pthread_mutex_unlock(&k->lock);
    return v;
}

static struct key *by_id(const struct keys *ks, uint32_t id)
{
    return id == 0 || ks->places[id] >= ks->n ? NULL : &ks->list[ks->places[id]];
}

static void fill(struct bucket *b, double seconds)
{
    b->left += b->rate * seconds;
    b->left = b->left < b->room ? b->left : b->room;
}

enum status_code keys_take(struct keys *k, const struct key_who *who, uint64_t tokens,
                           uint64_t now_us, unsigned *retry_s, struct status *st)
{
    struct key *key;
    double wait = 0;

    status_ok(st);
    if (who->id == 0)
        return ST_OK;
    pthread_mutex_lock(&k->lock);
    key = by_id(k, who->id);
    if (key != NULL) {
        double s = key->filled_us == 0 ? 0 : (double)(now_us - key->filled_us) / 1e6;

        fill(&key->requests, s);
        fill(&key->tokens, s);
        key->filled_us = now_us;
        if (key->requests.rate > 0 && key->requests.left < 1) {
            wait = (1 - key->requests.left) / key->requests.rate;
            status_set(st, ST_EXHAUSTED, "this key may send %g requests a second",
                       key->requests.rate);
        } else if (key->tokens.rate > 0 && key->tokens.left <= 0) {
            wait = (1 - key->tokens.left) / key->tokens.rate;
            status_set(st, ST_EXHAUSTED, "this key may use %.0f tokens a minute",
                       key->tokens.rate * 60);
        } else {
            key->requests.left -= key->requests.rate > 0;
            if (key->tokens.rate > 0)
                key->tokens.left -= (double)tokens;
        }
    }
    pthread_mutex_unlock(&k->lock);
    *retry_s = wait < 3600 ? (unsigned)wait + 1 : 3600;
    return st->code;
}

void keys_charge(struct keys *k, const struct key_who *who, uint64_t tokens)
{
    struct key *key;

    if (who->id == 0 || tokens == 0)
        return;
    pthread_mutex_lock(&k->lock);
    key = by_id(k, who->id);
    if (key != NULL && key->tokens.rate > 0)
        key->tokens.left -= (double)tokens;
    pthread_mutex_unlock(&k->lock);
}
