/* Orthanc 1.10 always listens on every interface. Preloaded, this keeps it on 127.0.0.1:
 * a bind to the IPv4 or IPv6 wildcard address becomes a bind to the loopback address. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netinet/in.h>
#include <sys/socket.h>

typedef int (*bind_function)(int, const struct sockaddr *, socklen_t);

int bind(int descriptor, const struct sockaddr *wanted, socklen_t length)
{
    bind_function next = (bind_function)dlsym(RTLD_NEXT, "bind");

    if (wanted->sa_family == AF_INET && length >= sizeof(struct sockaddr_in)) {
        struct sockaddr_in local = *(const struct sockaddr_in *)wanted;
        if (local.sin_addr.s_addr == htonl(INADDR_ANY))
            local.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        return next(descriptor, (struct sockaddr *)&local, sizeof local);
    }
    if (wanted->sa_family == AF_INET6 && length >= sizeof(struct sockaddr_in6)) {
        struct sockaddr_in6 local = *(const struct sockaddr_in6 *)wanted;
        if (IN6_IS_ADDR_UNSPECIFIED(&local.sin6_addr))
            local.sin6_addr = in6addr_loopback;
        return next(descriptor, (struct sockaddr *)&local, sizeof local);
    }
    return next(descriptor, wanted, length);
}
