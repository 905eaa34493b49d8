#!/usr/bin/perl
# Takes a file and tells its size and sum.
use strict;
use warnings;
use CGI;
use Digest::SHA;

$CGI::POST_MAX = 50 * 1024 * 1024;
my $q = CGI->new;
if ($q->cgi_error) {
    print $q->header(-status => $q->cgi_error, -type => 'text/plain'), 'That did not work: ', $q->cgi_error, "\n";
    exit;
}
if (my $file = $q->upload('file')) {
    my $sha = Digest::SHA->new(256)->addfile($file->handle);
    print $q->header('text/plain'), 'name ', $q->param('file'), "\nbytes ", -s $file, "\nsha256 ", $sha->hexdigest, "\n";
    exit;
}
print $q->header, $q->start_html('Upload'), $q->start_multipart_form, $q->filefield('file'), $q->submit('Send'),
    $q->end_form, $q->end_html;
