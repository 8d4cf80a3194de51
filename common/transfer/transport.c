#include "common/transfer/transport.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* UCX's transports by kind, as its lane names begin. */
static const struct {
    const char *prefix;
    enum transfer_kind kind;
} families[] = {
    {"rc_", TRANSFER_RDMA},        {"dc_", TRANSFER_RDMA},  {"ud_", TRANSFER_RDMA},
    {"cuda_ipc", TRANSFER_NVLINK}, {"posix", TRANSFER_SHM}, {"sysv", TRANSFER_SHM},
    {"xpmem", TRANSFER_SHM},       {"cma", TRANSFER_SHM},   {"knem", TRANSFER_SHM},
    {"self", TRANSFER_SHM},        {"tcp", TRANSFER_TCP},
};

const char *transport_kind_name(enum transfer_kind kind)
{
    static const char *const names[] = {"auto", "rdma", "nvlink", "shm", "tcp"};

    return names[kind];
}

enum status_code transport_plan_make(const struct transfer_options *opt,
                                     struct transport_plan *plan, struct status *st)
{
    /* UCX's own TCP is never used. For TCP, UCX only owns the memory, and has itself to talk to. */
    static const char *const tls[] = {
        [TRANSFER_AUTO] = "sm,self",
        [TRANSFER_RDMA] = "ib",
        [TRANSFER_NVLINK] = "cuda_ipc,cuda_copy,sm",
        [TRANSFER_SHM] = "sm,self",
        [TRANSFER_TCP] = "self",
    };
    enum transfer_kind kind = opt->require != TRANSFER_AUTO ? opt->require : opt->transport;

    memset(plan, 0, sizeof(*plan));
    snprintf(plan->tls, sizeof(plan->tls), "%s", tls[kind]);
    if (opt->devices != NULL)
        snprintf(plan->devices, sizeof(plan->devices), "%s", opt->devices);
    plan->ucx = kind != TRANSFER_TCP;
    plan->sockets = kind == TRANSFER_AUTO || kind == TRANSFER_TCP;
    return status_ok(st);
}

static ucs_status_t configure(const struct transport_plan *plan, ucp_config_t *config)
{
    /* Without error handling of the memory transports UCX drops them silently for endpoints that
     * must notice a dead peer; the keepalive is what notices it. ALLOC_PRIO: methods that map
     * fresh, zeroed memory. */
    const char *const settings[][2] = {
        {"TLS", plan->tls},
        {"KEEPALIVE_INTERVAL", "1s"},
        {"ALLOC_PRIO", "md:sysv,md:posix,md:*,mmap"},
    };
    ucs_status_t rc = UCS_OK;

    for (size_t i = 0; rc == UCS_OK && i < sizeof(settings) / sizeof(settings[0]); i++)
        rc = ucp_config_modify(config, settings[i][0], settings[i][1]);
    if (rc == UCS_OK && strstr(plan->tls, "sm") != NULL)
        rc = ucp_config_modify(config, "MM_ERROR_HANDLING", "y");
    if (rc == UCS_OK && plan->devices[0] != '\0')
        rc = ucp_config_modify(config, "NET_DEVICES", plan->devices);
    return rc;
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
    ucs_status_t rc = ucp_config_read(NULL, NULL, &config);

    if (rc != UCS_OK)
        return status_set(st, ST_UNAVAILABLE, "UCX's configuration (UCX_* in the environment): %s",
                          ucs_status_string(rc));
    rc = configure(plan, config);
    if (rc == UCS_OK)
        rc = ucp_init(&params, config, out);
    ucp_config_release(config);
    if (rc != UCS_OK)
        return status_set(st, ST_UNAVAILABLE, "UCX with transports %s, devices %s: %s", plan->tls,
                          plan->devices[0] != '\0' ? plan->devices : "all", ucs_status_string(rc));
    return status_ok(st);
}

static const char *family_name(const char *transport)
{
    for (size_t i = 0; i < sizeof(families) / sizeof(families[0]); i++)
        if (strncmp(transport, families[i].prefix, strlen(families[i].prefix)) == 0)
            return transport_kind_name(families[i].kind);
    return NULL;
}

/* "tcp/lo.0" to "tcp/lo": the number is UCX's system device. */
static void cut_sysdev(char *name)
{
    char *dot = strrchr(name, '.');

    if (dot != NULL && dot[1 + strspn(dot + 1, "0123456789")] == '\0')
        *dot = '\0';
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
               : strstr(text, " am ") != NULL                                 ? 2
                                                                              : 1;
        if (rank > best_rank) {
            best_rank = rank;
            memcpy(best, name, sizeof(best));
        }
    }
    cut_sysdev(best);
    if (family_name(best) == NULL)
        snprintf(buf, n, "unknown");
    else
        snprintf(buf, n, "%s (%s)", family_name(best), best);
}

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
