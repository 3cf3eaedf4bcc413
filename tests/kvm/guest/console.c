// COM1, polled.
#include <stdarg.h>

#include "guest.h"

#define COM1 0x3f8

void console_again(void)
{
    outb(COM1 + 3, 0);
    outb(COM1 + 4, 0x08);
    outb(COM1 + 1, 0);
}

void put(char c) { outb(COM1, (u8)c); }

char get(void)
{
    while (!(inb(COM1 + 5) & 1))
        __asm__ volatile("pause");
    return (char)inb(COM1);
}

static void put_number(u64 value, unsigned base)
{
    char digits[20];
    unsigned count = 0;
    do {
        digits[count++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    while (count)
        put(digits[--count]);
}

void print(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    for (; *format; format++) {
        if (*format != '%') {
            put(*format);
            continue;
        }
        switch (*++format) {
        case 's':
            for (const char *s = va_arg(arguments, const char *); *s; s++)
                put(*s);
            break;
        case 'u': put_number(va_arg(arguments, u64), 10); break;
        case 'x': put_number(va_arg(arguments, u64), 16); break;
        default: put(*format);
        }
    }
    va_end(arguments);
}
