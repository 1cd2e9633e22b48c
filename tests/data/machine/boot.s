# A guest without an operating system: it writes numbered records to the disk that it boots from, and
# says each number on its serial line when the record is on the disk.
#   as --32 boot.s -o boot.o && ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o boot.bin boot.o
.code16
.globl _start
_start:
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    movb %dl, drive
    sti
again:
    incl count
    movl count, %eax
    movl %eax, 0x8000            # the record: its number,
    imull $7919, %eax
    andl $0x1fff, %eax
    incl %eax
    movl %eax, 0x8004            # and its block of 4096 bytes
    shll $3, %eax
    movl %eax, where
    movw $packet, %si
    movw $0x4300, %ax            # extended write
    movb drive, %dl
    int $0x13
    jc again
    movl count, %eax             # it is on the disk: say so, eight digits and a new line
    movw $8, %cx
    movw $0x3f8, %dx
digit:
    roll $4, %eax
    pushw %ax
    andb $15, %al
    cmpb $10, %al
    sbbb $0x69, %al
    das
    outb %al, %dx
    popw %ax
    loop digit
    movb $10, %al
    outb %al, %dx
    cmpb $0, busy
    je idle
    movw 0x46c, %bx              # the timer's ticks, 18 a second
wait:
    incl 0x9000                  # memory changes all the time
    cmpw 0x46c, %bx
    je wait
    jmp again
idle:
    hlt                          # until it ticks
    jmp again
.balign 4
count: .long 0
drive: .byte 0
.balign 4
packet:
    .byte 16, 0
    .word 1
    .word 0x8000, 0
where: .long 0, 0
.org 509
busy: .byte 1
.word 0xaa55
