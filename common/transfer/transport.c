#include "common/transfer/transport.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "common/transfer/tcp_address.h"

#ifdef BATON_UCX_LOG_HANDLER
#define asm __asm__ /* newer headers of UCX want GNU C's keyword */
#include <ucs/debug/log_def.h>
#undef asm
#endif

enum {
    KIND_BIT_ALL =
        1u << TRANSFER_RDMA | 1u << TRANSFER_NVLINK | 1u << TRANSFER_SHM | 1u << TRANSFER_TCP
};

/* UCX's transports and aliases by kind. Lane names begin like a transport's ("rc_mlx5/..."). */
static const struct family {
    enum transfer_kind kind;
    const char *tls;      /* what a plan asks for */
    const char *names[8]; /* how the words of UCX_TLS and lane names begin */
} families[] = {
    {TRANSFER_RDMA, "ib", {"ib", "rc", "dc", "ud", "srd", "gga"}},
    {TRANSFER_NVLINK, "cuda", {"cuda", "gdr_copy"}},
    {TRANSFER_SHM, "sm", {"sm", "shm", "posix", "sysv", "xpmem", "cma", "knem"}},
    {TRANSFER_TCP, "tcp", {"tcp"}},
};

enum { N_FAMILIES = sizeof(families) / sizeof(families[0]) };

const char *transport_kind_name(enum transfer_kind kind)
{
    static const char *const names[] = {"auto", "rdma", "nvlink", "shm", "tcp"};

    return names[kind];
}

static const struct family *family_of(const char *name)
{
    for (int f = 0; f < N_FAMILIES; f++)
        for (int i = 0; i < 8 && families[f].names[i] != NULL; i++)
            if (strncmp(name, families[f].names[i], strlen(families[f].names[i])) == 0)
                return &families[f];
    return NULL;
}

void transport_facts_read(struct transport_facts *out)
{
    *out = (struct transport_facts){
        .ucx_tls = getenv("UCX_TLS"),
        .ucx_net_devices = getenv("UCX_NET_DEVICES"),
        .ucx_gid_index = getenv("UCX_IB_GID_INDEX"),
        .verbs = rdma_verbs_real(),
    };
}

/* ---- the plan ---- */

static void add_word(char *list, size_t cap, const char *word, size_t n)
{
    size_t at = strlen(list);

    snprintf(list + at, cap - at, "%s%.*s", at > 0 && list[at - 1] != '^' ? "," : "", (int)n, word);
}

/* Which kinds UCX_TLS allows: a list of transports, or after '^' of those to leave out. */
static unsigned kinds_allowed(const char *tls)
{
    bool without = tls != NULL && tls[0] == '^';
    unsigned named = 0;

    if (tls == NULL || tls[0] == '\0')
        return KIND_BIT_ALL;
    for (const char *at = tls + without; *at != '\0';) {
        const struct family *f = family_of(at);
        size_t n = strcspn(at, ",");

        if (!without && n == 3 && strncmp(at, "all", 3) == 0)
            return KIND_BIT_ALL;
        /* Leaving out a transport leaves its kind to the others of it; an alias takes all. */
        if (f != NULL && (!without || (n == strlen(f->tls) && strncmp(at, f->tls, n) == 0)))
            named |= 1u << f->kind;
        at += n;
        at += *at == ',';
    }
    return without ? KIND_BIT_ALL & ~named : named;
}

/* UCX's TLS for the kinds: what the environment says about them, else their aliases. */
static void write_tls(const char *env, unsigned kinds, char *out, size_t cap)
{
    bool without = env != NULL && env[0] == '^';
    bool listed = env != NULL && env[0] != '\0' && !without && strcmp(env, "all") != 0;

    out[0] = '\0';
    if (without) {
        snprintf(out, cap, "%s", env);
        for (int f = 0; f < N_FAMILIES; f++)
            if (!(kinds & 1u << families[f].kind))
                add_word(out, cap, families[f].tls, strlen(families[f].tls));
        return;
    }
    for (const char *at = listed ? env : ""; *at != '\0';) {
        const struct family *f = family_of(at);
        size_t n = strcspn(at, ",");

        if (f != NULL && (kinds & 1u << f->kind))
            add_word(out, cap, at, n);
        at += n;
        at += *at == ',';
    }
    for (int f = 0; f < N_FAMILIES && !listed; f++)
        if (kinds & 1u << families[f].kind)
            add_word(out, cap, families[f].tls, strlen(families[f].tls));
    add_word(out, cap, "self", 4); /* UCX must have something, also when it only owns the slabs */
}

/* --kv-devices within UCX_NET_DEVICES; either may be absent. */
static enum status_code choose_devices(const struct transfer_options *opt, const char *env,
                                       struct transport_plan *plan, struct status *st)
{
    const char *given = opt->devices;
    bool all = env == NULL || env[0] == '\0' || strcmp(env, "all") == 0;

    if (given != NULL && strlen(given) >= sizeof(plan->devices))
        return status_set(st, ST_INVALID, "--kv-devices: longer than %zu bytes",
                          sizeof(plan->devices) - 1);
    for (const char *at = given != NULL && !all ? given : ""; *at != '\0';) {
        size_t n = strcspn(at, ",");
        char word[128];

        snprintf(word, sizeof(word), "%.*s", (int)n, at);
        if (!tcp_device_listed(env, word))
            return status_set(st, ST_UNAVAILABLE,
                              "UCX_NET_DEVICES=%s in the environment contradicts --kv-devices %s "
                              "(%s is not in it): unset it",
                              env, given, word);
        at += n;
        at += *at == ',';
    }
    snprintf(plan->devices, sizeof(plan->devices), "%s", given != NULL ? given : all ? "" : env);
    return status_ok(st);
}

/* UCX is told only the RDMA ports among the devices: of others it says that they do not exist. */
static void write_ucx_devices(struct transport_plan *plan)
{
    bool far = false;

    plan->ucx_devices[0] = '\0';
    for (uint32_t i = 0; i < plan->report.n_ports; i++) {
        const struct rdma_port *p = &plan->report.ports[i];
        char name[IBV_SYSFS_NAME_MAX + 8];

        snprintf(name, sizeof(name), "%s:%u", p->device, p->port);
        far |= p->far;
        if (p->usable && !p->far)
            add_word(plan->ucx_devices, sizeof(plan->ucx_devices), name, strlen(name));
    }
    if (plan->ucx_devices[0] == '\0' || (plan->devices[0] == '\0' && !far))
        snprintf(plan->ucx_devices, sizeof(plan->ucx_devices), "all");
}

/* One kind alone was asked for: is it there? */
static enum status_code check_kind(enum transfer_kind kind, const struct transport_plan *plan,
                                   const struct rdma_wish *wish, struct status *st)
{
    struct tcp_address some[TCP_ADDRESSES_MAX];

    if (kind == TRANSFER_RDMA)
        return rdma_require(&plan->report, wish, st);
    if (kind == TRANSFER_TCP && tcp_addresses_local(plan->devices, some) == 0)
        return status_set(st, ST_UNAVAILABLE, "no network interface%s%s is up and has an address",
                          plan->devices[0] != '\0' ? " of " : "", plan->devices);
    return status_ok(st);
}

/* Ports are there, and this process could not register its memory with them. */
static bool memlock_forbids(const struct rdma_report *r)
{
    struct status why;

    if (r->n_usable == 0 || rdma_memlock_check(r, RDMA_MEMLOCK_LEAST, &why) == ST_OK)
        return false;
    log_warn("transfer: no KV goes over RDMA: %s", why.msg);
    return true;
}

static void log_ports(const struct rdma_report *r)
{
    char text[256];

    for (uint32_t i = 0; i < r->n_ports; i++) {
        rdma_port_text(&r->ports[i], text, sizeof(text));
        if (r->ports[i].usable)
            log_info("transfer: rdma port %s", text);
        else
            log_warn("transfer: rdma port %s", text);
    }
}

enum status_code transport_plan_make(const struct transfer_options *opt,
                                     const struct transport_facts *facts,
                                     struct transport_plan *plan, struct status *st)
{
    enum transfer_kind kind = opt->require != TRANSFER_AUTO ? opt->require : opt->transport;
    struct rdma_wish wish = {.devices = plan->devices, .gid_index = -1};
    unsigned kinds = kinds_allowed(facts->ucx_tls);

    memset(plan, 0, sizeof(*plan));
    if (opt->require != TRANSFER_AUTO && opt->transport != TRANSFER_AUTO &&
        opt->require != opt->transport)
        return status_set(st, ST_INVALID, "--kv-transport %s contradicts --kv-require %s",
                          transport_kind_name(opt->transport), transport_kind_name(opt->require));
    if (kind != TRANSFER_AUTO && !(kinds & 1u << kind))
        return status_set(st, ST_UNAVAILABLE,
                          "UCX_TLS=%s in the environment forbids %s, which --kv-%s asks for: unset "
                          "it or change the flag",
                          facts->ucx_tls, transport_kind_name(kind),
                          opt->require != TRANSFER_AUTO ? "require" : "transport");
    if (choose_devices(opt, facts->ucx_net_devices, plan, st) != ST_OK)
        return st->code;
    if (facts->ucx_gid_index != NULL && strcmp(facts->ucx_gid_index, "auto") != 0)
        wish.gid_index = atoi(facts->ucx_gid_index);
    rdma_probe(facts->verbs, &wish, &plan->report);
    log_ports(&plan->report);
    if (check_kind(kind, plan, &wish, st) != ST_OK)
        return status_wrap(st, "--kv-%s %s",
                           opt->require != TRANSFER_AUTO ? "require" : "transport",
                           transport_kind_name(kind));
    if (kind != TRANSFER_AUTO)
        kinds = 1u << kind;
    else
        kinds &= ~(1u << TRANSFER_NVLINK); /* pools of this backend are host memory */
    if (plan->report.n_usable == 0 || (kind == TRANSFER_AUTO && memlock_forbids(&plan->report)))
        kinds &= ~(1u << TRANSFER_RDMA);
    if (kind == TRANSFER_AUTO && kinds == 0)
        return status_set(st, ST_UNAVAILABLE,
                          "UCX_TLS=%s in the environment leaves nothing that can carry KV here: "
                          "unset it",
                          facts->ucx_tls);
    plan->sockets = kinds & 1u << TRANSFER_TCP;
    plan->rdma = kinds & 1u << TRANSFER_RDMA;
    plan->ucx = kinds & ~(1u << TRANSFER_TCP);
    /* UCX's own TCP is never used, the socket lane is: see open_lane(). */
    write_tls(facts->ucx_tls, kinds & ~(1u << TRANSFER_TCP), plan->tls, sizeof(plan->tls));
    write_ucx_devices(plan);
    return status_ok(st);
}

/* ---- UCX ---- */

#ifdef BATON_UCX_LOG_HANDLER
/* UCX prints to standard output, which belongs to the program. */
static ucs_log_func_rc_t on_ucx_log(const char *file, unsigned line, const char *function,
                                    ucs_log_level_t level,
                                    const ucs_log_component_config_t *component,
                                    const char *message, va_list ap)
{
    char text[512];

    (void)file;
    (void)line;
    (void)function;
    if (level > component->log_level || level > UCS_LOG_LEVEL_INFO)
        return UCS_LOG_FUNC_RC_CONTINUE;
    vsnprintf(text, sizeof(text), message, ap);
    log_write(level <= UCS_LOG_LEVEL_FATAL ? LOG_ERROR : LOG_WARN, "transfer: ucx: %s", text);
    return level <= UCS_LOG_LEVEL_FATAL ? UCS_LOG_FUNC_RC_CONTINUE : UCS_LOG_FUNC_RC_STOP;
}

static void redirect_ucx_log(void)
{
    static atomic_flag done = ATOMIC_FLAG_INIT; /* the handler is the process's, and stays */

    if (!atomic_flag_test_and_set(&done))
        ucs_log_push_handler(on_ucx_log);
}
#else
static void redirect_ucx_log(void)
{
}
#endif

static ucs_status_t configure(const struct transport_plan *plan, ucp_config_t *config)
{
    /* Without error handling of the memory transports UCX drops them silently for endpoints that
     * must notice a dead peer; the keepalive is what notices it. ALLOC_PRIO: methods that map
     * fresh, zeroed memory. */
    const char *const settings[][2] = {
        {"TLS", plan->tls},           {"NET_DEVICES", plan->ucx_devices},
        {"KEEPALIVE_INTERVAL", "1s"}, {"ALLOC_PRIO", "md:sysv,md:posix,md:*,mmap"},
        {"MM_ERROR_HANDLING", "y"},
    };
    size_t n = sizeof(settings) / sizeof(settings[0]);
    ucs_status_t rc = UCS_OK;

    if (!plan->ucx)
        n--; /* UCX would warn that nothing reads the last one */
    for (size_t i = 0; rc == UCS_OK && i < n; i++)
        rc = ucp_config_modify(config, settings[i][0], settings[i][1]);
    return rc;
}

/* cuda_ipc must be there when NVLink was asked for: without it UCX goes on, with a warning. */
static enum status_code check_nvlink(const struct transport_plan *plan, ucp_context_h context,
                                     struct status *st)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f;
    bool found;

    if (strstr(plan->tls, "cuda") == NULL)
        return status_ok(st);
    f = open_memstream(&text, &len);
    if (f == NULL)
        return status_set(st, ST_EXHAUSTED, "no memory to look at UCX's transports");
    ucp_context_print_info(context, f);
    fclose(f);
    found = strstr(text, "cuda_ipc") != NULL;
    free(text);
    if (!found)
        return status_set(
            st, ST_UNAVAILABLE,
            "--kv-transport nvlink: this UCX has no cuda_ipc transport (built without "
            "CUDA, or no GPU and driver in this container): install a UCX with CUDA "
            "or choose another transport");
    return status_ok(st);
}

enum status_code transport_context(const struct transport_plan *plan, ucp_context_h *out,
                                   struct status *st)
{
    ucp_params_t params = {
        .field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_NAME,
        .features = UCP_FEATURE_RMA | UCP_FEATURE_WAKEUP,
        .name = "baton",
    };
    ucp_config_t *config;
    ucs_status_t rc;

    redirect_ucx_log();
    rc = ucp_config_read(NULL, NULL, &config);
    if (rc != UCS_OK)
        return status_set(st, ST_UNAVAILABLE, "UCX's configuration (UCX_* in the environment): %s",
                          ucs_status_string(rc));
    rc = configure(plan, config);
    if (rc == UCS_OK)
        rc = ucp_init(&params, config, out);
    ucp_config_release(config);
    if (rc != UCS_OK)
        return status_set(st, ST_UNAVAILABLE, "UCX with transports %s, devices %s: %s", plan->tls,
                          plan->ucx_devices, ucs_status_string(rc));
    if (check_nvlink(plan, *out, st) != ST_OK) {
        ucp_cleanup(*out);
        *out = NULL;
    }
    return st->code;
}

/* ---- what UCX uses ---- */

/* "tcp/lo.0" to "tcp/lo": the number is UCX's system device. */
static void cut_sysdev(char *name)
{
    char *dot = strrchr(name, '.');

    if (dot != NULL && dot[1 + strspn(dot + 1, "0123456789")] == '\0')
        *dot = '\0';
}

static void write_lane(const char *lane, char *buf, size_t n)
{
    const struct family *f = family_of(lane);

    if (strncmp(lane, "self", 4) == 0)
        snprintf(buf, n, "shm (%s)", lane); /* within this process */
    else if (f == NULL)
        snprintf(buf, n, "unknown");
    else
        snprintf(buf, n, "%s (%s)", transport_kind_name(f->kind), lane);
}

/* A line is "#  lane[0]:  5:posix/memory.0 md[3]  -> md[3]/posix/sysdev[255] rma_bw#0 am ...". The
 * lane that carries puts says rma; where puts are emulated it is the one that says am. */
void transport_parse_info(const char *info, char *buf, size_t n)
{
    char best[64] = "";
    int best_rank = 0;

    for (const char *line = strstr(info, "lane["); line != NULL; line = strstr(line + 1, "lane[")) {
        char name[64], text[512];
        int rank;

        snprintf(text, sizeof(text), "%.*s", (int)strcspn(line, "\n"), line);
        if (sscanf(text, "lane[%*d]: %*d:%63s", name) != 1)
            continue;
        rank = strstr(text, " rma#") != NULL || strstr(text, " rma ") != NULL ? 4
               : strstr(text, " rma_bw") != NULL                              ? 3
               : strstr(text, " am") != NULL                                  ? 2
                                                                              : 1;
        if (rank > best_rank) {
            best_rank = rank;
            memcpy(best, name, sizeof(best));
        }
    }
    cut_sysdev(best);
    write_lane(best, buf, n);
}

#ifdef BATON_UCX_EP_TRANSPORTS
void transport_read_back(ucp_ep_h ep, char *buf, size_t n)
{
    ucp_transport_entry_t lanes[16];
    ucp_ep_attr_t attr = {
        .field_mask = UCP_EP_ATTR_FIELD_TRANSPORTS,
        .transports = {.entries = lanes, .num_entries = 16, .entry_size = sizeof(lanes[0])}};
    char text[96] = "";

    /* All lanes of one plan are of one kind, but for cma beside the mapped memory; the first is
     * what UCX rates best. */
    if (ucp_ep_query(ep, &attr) == UCS_OK && attr.transports.num_entries > 0)
        snprintf(text, sizeof(text), "%s/%s", lanes[0].transport_name, lanes[0].device_name);
    write_lane(text, buf, n);
}
#else
void transport_read_back(ucp_ep_h ep, char *buf, size_t n)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);

    snprintf(buf, n, "unknown");
    if (f == NULL)
        return;
    ucp_ep_print_info(ep, f);
    fclose(f);
    transport_parse_info(text, buf, n);
    free(text);
}
#endif
