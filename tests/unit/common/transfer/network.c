#include "network.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static struct network n;
static struct cable cable;

const struct network *network_get(void)
{
    return &n;
}

bool network_shell(const char *fmt, ...)
{
    char command[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(command, sizeof(command), fmt, ap);
    va_end(ap);
    return system(command) == 0;
}

static bool lay_veth(void)
{
    return network_shell("ip link add %s netns %s type veth peer name %s netns %s", n.from_if,
                         n.from_ns, n.to_if, n.to_ns);
}

static int make(bool with_weather)
{
    int pid = (int)getpid();
    const char *why = NULL;

    snprintf(n.from_ns, sizeof(n.from_ns), "baton-a-%d", pid);
    snprintf(n.to_ns, sizeof(n.to_ns), "baton-b-%d", pid);
    snprintf(n.from_if, sizeof(n.from_if), "bta%d", pid % 100000);
    snprintf(n.to_if, sizeof(n.to_if), "btb%d", pid % 100000);
    if (geteuid() != 0 || !network_shell("ip netns add %s 2>/dev/null", n.from_ns)) {
        n.from_ns[0] = '\0';
        printf("skipped: network namespaces need root and iproute2\n");
        return 0;
    }
    if (!network_shell("ip netns add %s", n.to_ns))
        return -1;
    if (with_weather) {
        why = cable_lay(&cable, n.from_ns, n.from_if, n.to_ns, n.to_if, 20263);
        if (why != NULL)
            printf("skipped: loss and delay: %s; cables are cut all the same\n", why);
    }
    if ((cable.pid == 0 && !lay_veth()) ||
        !network_shell("ip -n %s addr add 10.77.1.1/24 dev %s", n.from_ns, n.from_if) ||
        !network_shell("ip -n %s addr add 10.77.1.2/24 dev %s", n.to_ns, n.to_if) ||
        !network_shell("ip -n %s link set lo up && ip -n %s link set %s up", n.from_ns, n.from_ns,
                       n.from_if) ||
        !network_shell("ip -n %s link set lo up && ip -n %s link set %s up", n.to_ns, n.to_ns,
                       n.to_if))
        return -1;
    return 0;
}

int network_make(void **state)
{
    (void)state;
    return make(false);
}

int network_make_with_weather(void **state)
{
    (void)state;
    return make(true);
}

struct cable network_cable(void)
{
    return cable;
}

bool network_weather(const char *words)
{
    struct weather w;

    if (cable.pid == 0)
        return false;
    if (!weather_parse(words, &w))
        abort();
    cable_set(&cable, &w);
    return true;
}

int network_drop(void **state)
{
    (void)state;
    if (cable.pid != 0)
        cable_remove(&cable);
    if (n.from_ns[0] != '\0')
        network_shell("ip netns del %s; ip netns del %s", n.from_ns, n.to_ns);
    return 0;
}
