#!/usr/bin/perl
# A guest book: each entry is kept in a file and mailed to its owner.
use strict;
use warnings;
use CGI;
use Fcntl ':flock';

my $q    = CGI->new;
my $book = 'guestbook.txt';    # a CGI script runs in its own directory

sub entries {
    open my $f, '<:encoding(UTF-8)', $book or return;
    flock $f, LOCK_SH;
    return map { [ split /\t/, $_, 3 ] } <$f>;
}

if ($q->request_method eq 'POST') {
    my ($name, $text) = map { my $v = $q->param($_) // ''; $v =~ s/[\t\r\n]+/ /g; substr $v, 0, 500 } qw(name text);
    if ($name !~ /\S/ || $text !~ /\S/) {
        print $q->header(-status => '400 Bad Request', -type => 'text/plain'), "Write a name and a text.\n";
        exit;
    }
    open my $f, '>>', $book or die "open $book: $!";
    flock $f, LOCK_EX;
    print $f join("\t", time, $name, $text), "\n";
    close $f or die "write $book: $!";

    open my $mail, '|-', '/usr/sbin/sendmail', '-t', '-oi' or die "sendmail: $!";
    print $mail "To: bob\@example.net\nFrom: guestbook\@example.net\nSubject: a guest wrote\n\n$name: $text\n";
    close $mail or warn "sendmail said $?\n";

    print $q->redirect(-uri => $q->script_name, -status => '303 See Other');
    exit;
}

print $q->header(-charset => 'utf-8'), $q->start_html(-title => 'Guest book', -encoding => 'utf-8'), $q->h1('Guest book');
binmode STDOUT, ':encoding(UTF-8)';
print $q->p($q->b(CGI::escapeHTML($_->[1])), ': ', CGI::escapeHTML($_->[2])) for reverse entries();
binmode STDOUT;
print $q->start_form, 'Name ', $q->textfield('name'), ' Text ', $q->textfield('text'), $q->submit('Write'), $q->end_form,
    $q->end_html;
